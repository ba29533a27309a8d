"""Documents go through a model in batches, padded to one length or packed end to end.

Shape letters: B windows of a batch, S sequence, N tokens of a batch, T scored tokens of a document.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from xelm_nemo import device
from xelm_nemo.ensemble.batches import batches
from xelm_nemo.evaluation.documents import EncodedDocument
from xelm_nemo.evaluation.windows import Window, windows

logger = logging.getLogger(__name__)

# Tokens with padding to those without, from which on. Attention over packed texts takes a little longer: of
# an XGLM-564M's passes on an H200 padding was 1.123 of the tokens and 1.095 of the time.
_WORTH_PACKING = 1.05
_SAY_SECONDS = 30.0


class Model(Protocol):
    """A causal model, ready to evaluate."""

    def __call__(self, tokens_BS: Tensor, target_BS: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """Log-probability of the target of each token, [B, S].

        No logits leave the model, so that it may compute it without ever having them in memory.

        Args:
            tokens_BS: token ids.
            target_BS: of each token.
            lengths: of the texts that lie end to end in the one row; only where it packs.
        """


@dataclass(frozen=True)
class Pass:
    """How documents are put through a model.

    Attributes:
        seq_length: context length of the models.
        stride: how far windows move on in longer documents; None cuts these off.
        batch_tokens: tokens of a forward pass, padding included where texts are padded.
        device: where the model is.
        folder: holds each model's `<name>.safetensors`, written when all its documents are scored.
    """

    seq_length: int
    stride: int | None
    batch_tokens: int
    device: torch.device | str
    folder: Path


@torch.inference_mode()
def log_probs(
    model: Model, documents: Sequence[EncodedDocument], how: Pass, *, name: str, packs: bool
) -> list[Tensor]:
    """Log-probability of every token of documents after the first, nats, float32 [T] each, on the CPU.

    Args:
        model: ready to evaluate, on the device of the pass.
        documents: their tokens.
        how: windows and batches.
        name: how the log calls the model.
        packs: whether texts may go through it end to end.
    """
    scores = [torch.empty(document.num_tokens) for document in documents]
    stride = how.seq_length if how.stride is None else how.stride
    every = [
        window
        for n, document in enumerate(documents)
        for window in windows(n, document.num_tokens, seq_length=how.seq_length, stride=stride)
    ]
    for window, log_p_T in _log_probs_of(every, model, documents, how, name=name, packs=packs):
        skipped = window.scored_from - window.start
        scores[window.document][window.scored_from : window.end] = log_p_T[skipped:]
    return scores


def _log_probs_of(
    every: Sequence[Window],
    model: Model,
    documents: Sequence[EncodedDocument],
    how: Pass,
    *,
    name: str,
    packs: bool,
) -> Iterator[tuple[Window, Tensor]]:
    """Windows in the order of their batches, each with its log-probabilities."""
    order: list[Window] = []
    found: list[Tensor] = []
    said = time.monotonic()
    for chosen, run in _groups([one.length for one in every], how.batch_tokens, packs=packs):
        if time.monotonic() - said > _SAY_SECONDS:
            logger.info("%s: %d of %d texts", name, len(order), len(every))
            said = time.monotonic()
        batch = [every[n] for n in chosen]
        rows = [torch.tensor(documents[one.document].ids[one.start : one.end + 1]) for one in batch]
        order += batch
        # Read after the last batch, so that the device never waits for this process.
        found.append(run(model, rows, how.device).to("cpu", non_blocking=True))
    device.wait(how.device)
    return zip(order, torch.split(torch.cat(found), [one.length for one in order]), strict=True)


def _groups(
    lengths: Sequence[int], batch_tokens: int, *, packs: bool
) -> Iterator[tuple[list[int], Callable[..., Tensor]]]:
    """Texts that go through the model together, and how: packed where that leaves much padding out."""
    loose: list[int] = []
    for group in batches(lengths, batch_tokens):
        padded, packed = len(group) * lengths[group[0]], sum(lengths[n] for n in group)
        if packs and padded > _WORTH_PACKING * packed:
            loose += group
        else:
            yield group, _run_padded
    for group in batches([lengths[n] for n in loose], batch_tokens, padded=False):
        yield [loose[n] for n in group], _run_packed


def _run_padded(model: Model, rows: list[Tensor], place: torch.device | str) -> Tensor:
    """Log-probabilities of texts one after another, [N]; padding is on the right, where no target looks."""
    tokens_BS = device.sent(pad_sequence(rows, batch_first=True), place)
    log_p_BS = model(tokens_BS[:, :-1], tokens_BS[:, 1:]).float()
    return torch.cat([log_p_S[: len(row) - 1] for log_p_S, row in zip(log_p_BS, rows, strict=True)])


def _run_packed(model: Model, rows: list[Tensor], place: torch.device | str) -> Tensor:
    """The same of a model that takes them end to end."""
    tokens_N = device.sent(torch.cat([row[:-1] for row in rows]), place)
    target_N = device.sent(torch.cat([row[1:] for row in rows]), place)
    return model(tokens_N[None], target_N[None], [len(row) - 1 for row in rows])[0].float()
