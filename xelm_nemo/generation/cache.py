"""What generation keeps between two tokens: each expert's keys and values, the text, and the weights given.

Shape letters: B texts, S tokens so far, E experts.
"""

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache


class MixtureCache(DynamicCache):
    """A cache for every expert. An expert that was not run for a while has a shorter one, and catches up.

    Attributes:
        experts: keys and values of each expert.
        ids_BS: the text so far.
        mask_BS: 1 where `ids_BS` is text, 0 where it is padding.
        log_w_BSE: the log-weights that the experts had at each token; NaN where nobody asked.
    """

    def __init__(self, num_experts: int, batch_size: int, device: torch.device) -> None:
        """An empty one."""
        super().__init__()
        self.experts = [DynamicCache() for _ in range(num_experts)]
        self.ids_BS = torch.empty(batch_size, 0, dtype=torch.long, device=device)
        self.mask_BS = self.ids_BS
        self.log_w_BSE = torch.empty(batch_size, 0, num_experts)

    def extend(self, ids_BS: Tensor, mask_BS: Tensor | None) -> None:
        """Take in new tokens; the mask, if there is one, is of the whole text."""
        self.ids_BS = torch.cat([self.ids_BS, ids_BS], 1)
        self.mask_BS = torch.ones_like(self.ids_BS) if mask_BS is None else mask_BS.long()
        nothing = torch.full((*ids_BS.shape, len(self.experts)), torch.nan)
        self.log_w_BSE = torch.cat([self.log_w_BSE, nothing], 1)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens so far."""
        return int(self.ids_BS.shape[1])

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep these texts, in this order."""
        self._choose(beam_idx)
        for cache in self.experts:
            cache.reorder_cache(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these texts, in this order."""
        self._choose(indices)
        for cache in self.experts:
            cache.batch_select_indices(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Take each text several times."""
        self._choose(torch.arange(len(self.ids_BS)).repeat_interleave(repeats))
        for cache in self.experts:
            cache.batch_repeat_interleave(repeats)

    def crop(self, max_length: int) -> None:
        """Forget what is behind so many tokens; a negative number is how many to forget."""
        length = max_length if max_length >= 0 else self.get_seq_length() + max_length
        self.ids_BS, self.mask_BS = self.ids_BS[:, :length], self.mask_BS[:, :length]
        self.log_w_BSE = self.log_w_BSE[:, :length]
        for cache in self.experts:
            cache.crop(length)

    def _choose(self, rows: Tensor) -> None:
        self.ids_BS = self.ids_BS[rows.to(self.ids_BS.device)]
        self.mask_BS = self.mask_BS[rows.to(self.mask_BS.device)]
        self.log_w_BSE = self.log_w_BSE[rows.to(self.log_w_BSE.device)]
