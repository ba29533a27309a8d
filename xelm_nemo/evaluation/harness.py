"""The model `xelm` of lm-evaluation-harness: an exported set, or one exported model.

Imported where lm_eval is installed, and only when tasks are to be run. Versions of lm_eval with plug-ins
find it by the entry point in setup.py; for the others importing this module is what registers it.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from xelm_nemo.ensemble.batches import batches
from xelm_nemo.errors import ConfigError
from xelm_nemo.evaluation.config import TASK_MIXINGS
from xelm_nemo.generation.continuations import (
    Pair,
    continue_texts,
    score_averaged,
    score_continuations,
    score_sequences,
)
from xelm_nemo.generation.opened import open_model

_NEW_TOKENS = 256  # lm_eval's own default


@register_model("xelm")
class XelmLM(TemplateLM):
    """The mixture, weighed anew at every token, as a model that tasks can ask.

    Every text begins with the token that begins a document in training, `</s>`: what the tokenizers of XGLM
    and OPT put there too.
    """

    def __init__(
        self,
        pretrained: str | Path,
        *,
        batch_size: int | str = "auto",
        batch_tokens: int = 16384,
        experts_per_token: int | None = None,
        temperature: float | None = None,
        mixing: str = "tokens",
        dtype: str = "auto",
        device: str | None = None,
        **_: Any,
    ) -> None:
        """Open a model.

        Args:
            pretrained: the folder of an exported set or model.
            batch_size: the most texts of a forward pass; "auto": as many as `batch_tokens` allows.
            batch_tokens: tokens of a forward pass, padding included.
            experts_per_token: how many experts the router keeps; None leaves it to the set.
            temperature: of the router; None leaves it to the set.
            mixing: "tokens"; or of options "sequence", c-BTM's, or "logits", X-ELM's, whose temperature is 1.
            dtype: of the weights; "auto" takes the files'.
            device: such as "cuda:1"; None takes all GPUs. Where there is no GPU it is the CPU.
            **_: what lm_eval passes to every model, such as `max_batch_size`.

        Raises:
            ArtifactError: there is no exported model, or the set is not whole.
            ConfigError: the way of mixing is not known.
        """
        super().__init__()
        if mixing not in TASK_MIXINGS:
            raise ConfigError(f"mixing={mixing!r} is not known; use one of {list(TASK_MIXINGS)}.")
        self._top_k, self._mixing = experts_per_token, mixing
        self._opened = open_model(
            Path(pretrained),
            experts_per_token=experts_per_token if mixing == "tokens" else None,
            temperature=temperature,
            dtype=dtype,
            device=device,
        )
        self.tokenizer = self._opened.tokenizer
        self._batch_tokens = batch_tokens
        self._batch_size = None if str(batch_size).startswith("auto") else int(batch_size)

    @property
    def eot_token_id(self) -> int:
        """What ends a document, and begins one."""
        return int(self.tokenizer.eos_token_id)

    @property
    def max_length(self) -> int:
        """The most tokens that the model reads."""
        return self._opened.context

    @property
    def tokenizer_name(self) -> str:
        """Where the tokenizer is from."""
        return str(self.tokenizer.name_or_path)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids of a text behind the one that begins a document, unless it is there or not wanted."""
        ids: list[int] = self.tokenizer(string, add_special_tokens=False, verbose=False)["input_ids"]
        if add_special_tokens is False or ids[:1] == [self.eot_token_id]:
            return ids
        return [self.eot_token_id, *ids]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        pairs = [(context, continuation) for _, context, continuation in requests]
        if self._mixing == "tokens":
            return self._by_tokens(pairs)
        how: dict[str, Any] = {"batch_tokens": self._batch_tokens, "batch_size": self._batch_size}
        if self._mixing == "logits":
            return score_averaged(self._opened, pairs, top_k=self._top_k, **how)
        nats = score_sequences(self._opened, pairs, top_k=self._top_k, **how)
        return [(each, False) for each in nats]  # a sequence has no likeliest tokens

    def _by_tokens(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        return score_continuations(
            self._opened, pairs, batch_tokens=self._batch_tokens, batch_size=self._batch_size
        )

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Nats of whole texts, read through windows of the model's context that do not overlap."""
        owners, windows = [], []
        for owner, request in enumerate(requests):
            for window in self._windows(request.args[0]):
                owners.append(owner)
                windows.append(window)
        totals = [0.0] * len(requests)
        for owner, (nats, _) in zip(owners, self._by_tokens(windows), strict=True):
            totals[owner] += nats
        return totals

    def _windows(self, text: str) -> Iterable[tuple[list[int], list[int]]]:
        every = get_rolling_token_windows(
            token_list=self.tok_encode(text, add_special_tokens=False),
            prefix_token=self.prefix_token_id,
            max_seq_len=self.max_length,
            context_len=1,
        )
        return map(make_disjoint_window, every)

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continuations of texts, up to the first of each request's stop sequences."""
        alike = defaultdict(list)
        for n, request in enumerate(requests):
            alike[repr(request.args[1])].append(n)
        found: dict[int, str] = {}
        for members in alike.values():
            texts = [requests[n].args[0] for n in members]
            found |= dict(zip(members, self._continue(texts, requests[members[0]].args[1]), strict=True))
        return [found[n] for n in range(len(requests))]

    def _continue(self, texts: Sequence[str], settings: dict[str, Any]) -> list[str]:
        how: dict[str, Any] = dict(normalize_gen_kwargs(settings, min(_NEW_TOKENS, self.max_length // 2)))
        stops, new = [stop for stop in how.pop("until") if stop], how.pop("max_gen_toks")
        if new >= self.max_length:
            raise ConfigError(
                f"max_gen_toks={new} leaves no room for a prompt in the context of {self.max_length}; set "
                "generation_kwargs.max_gen_toks to less."
            )
        if not how["do_sample"]:
            how = {"do_sample": False}
        rows = [self.tok_encode(text)[-(self.max_length - new) :] for text in texts]
        found: dict[int, str] = {}
        for batch in batches([len(row) + new for row in rows], self._batch_tokens, self._batch_size):
            continued = continue_texts(
                self._opened, [rows[n] for n in batch], stops=stops, max_new_tokens=new, **how
            )
            found |= dict(zip(batch, continued, strict=True))
        return [found[n] for n in range(len(texts))]
