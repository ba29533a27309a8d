"""Words to vectors, and their gradient added where Megatron's optimizer reads it.

Autograd would make a gradient as large as the table, nearly all of it zero, in the table's dtype. For
XGLM's 256,008 words that is 1 GB, filled, and read and added again, for the rows of a few thousand tokens.
"""

from typing import Any

import torch
from megatron.core.tensor_parallel import (
    VocabParallelEmbedding,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from torch import Tensor

from xelm_nemo.model.main_grad import float32_main_grad, mark_as_added


class WordEmbedding(VocabParallelEmbedding):
    """Megatron's, with the gradient of a BF16 table summed in its float32 `main_grad`."""

    def forward(self, tokens_BS: Tensor) -> Tensor:
        """Vectors [B, S, H], or under sequence parallelism this rank's [S / tp, B, H]."""
        outside_BS = (tokens_BS < self.vocab_start_index) | (tokens_BS >= self.vocab_end_index)
        rows_BS = (tokens_BS - self.vocab_start_index).masked_fill(outside_BS, 0)
        if float32_main_grad(self.weight) is None:
            words_BSH = torch.nn.functional.embedding(rows_BS, self.weight)
        else:
            words_BSH = _Lookup.apply(rows_BS, self.weight)  # type: ignore[no-untyped-call]
        words_BSH = words_BSH.masked_fill(outside_BS[..., None], 0.0)
        if self.reduce_scatter_embeddings:
            words_SBH = words_BSH.transpose(0, 1).contiguous()
            return reduce_scatter_to_sequence_parallel_region(words_SBH, group=self.tp_group)  # type: ignore[no-any-return]
        return reduce_from_tensor_model_parallel_region(words_BSH, group=self.tp_group)  # type: ignore[no-any-return]


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_BS: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(rows_BS)
        ctx.parameter = weight
        return torch.nn.functional.embedding(rows_BS, weight)

    @staticmethod
    def backward(ctx: Any, grad_BSH: Tensor) -> tuple[None, Tensor]:
        (rows_BS,) = ctx.saved_tensors
        main_grad = ctx.parameter.main_grad
        # Sorted, so that the order of each row's sum, and with it every bit, is the same in every run.
        main_grad.index_put_((rows_BS.flatten(),), grad_BSH.flatten(0, 1).float(), accumulate=True)
        return None, mark_as_added(ctx.parameter)
