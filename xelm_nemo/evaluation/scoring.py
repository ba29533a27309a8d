"""Log-probabilities that one model gives the tokens of held-out documents, kept on disk once known.

Shape letters: B windows of a batch, S sequence, T scored tokens of a document.
"""

import hashlib
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from xelm_nemo import device
from xelm_nemo.corpus.examples import num_source_tokens
from xelm_nemo.ensemble.batches import batches
from xelm_nemo.ensemble.placement import Team
from xelm_nemo.errors import ArtifactError, CheckpointError, CorpusError
from xelm_nemo.evaluation.windows import Window, windows
from xelm_nemo.files import fingerprint, load_arrays, save_arrays
from xelm_nemo.router.pieces import Decoder

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
            lengths: of the texts that lie end to end in the one row; only where the source `packs`.
        """


@dataclass(frozen=True)
class HeldOutDocument:
    """A document to evaluate on; without a language or a cluster it counts in the overall figures only.

    Of instruction data `source` is the beginning of the text, which gives context and does not count.
    """

    text: str
    lang: str | None = None
    cluster: int | None = None
    source: str | None = None


@dataclass(frozen=True)
class EncodedDocument:
    """The tokens of a document that a model sees; all but the first are scored.

    Attributes:
        ids: token ids, whole or cut on the right to the context length plus one.
        num_bytes: UTF-8 bytes of the text that the counted ids stand for.
        is_truncated: whether text was cut off.
        num_context: scored tokens at the beginning that do not count.
    """

    ids: tuple[int, ...]
    num_bytes: int
    is_truncated: bool
    num_context: int = 0

    @property
    def num_tokens(self) -> int:
        """Number of scored tokens, T."""
        return len(self.ids) - 1

    @property
    def num_counted(self) -> int:
        """Number of scored tokens that count."""
        return self.num_tokens - self.num_context


@dataclass(frozen=True)
class ModelSource:
    """A model that is loaded only when it is needed.

    Attributes:
        name: how reports call it, also the name of its file of log-probabilities.
        fingerprint: changes when the weights do.
        load: returns the model, ready to evaluate (no dropout) on the device of the evaluation.
        prefetch: begins to bring the weights into host memory, and returns at once.
        packs: whether texts may go through it end to end instead of padded to one length.
    """

    name: str
    fingerprint: str
    load: Callable[[], Model]
    prefetch: Callable[[], None] = lambda: None
    packs: bool = False


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


def encode_documents(
    documents: Sequence[HeldOutDocument],
    *,
    encode: Callable[[str], Sequence[int]],
    tokenizer: Decoder,
    seq_length: int | None,
) -> list[EncodedDocument]:
    """Tokenise documents; cut on the right to seq_length + 1 tokens, unless that is None.

    Where an example's source is as long as that, none of its tokens counts.

    Raises:
        CorpusError: a document has no token to score.
    """
    return [_encode(document, encode, tokenizer, seq_length) for document in documents]


@dataclass(frozen=True)
class Scores:
    """The log-probabilities of one model on some documents, on disk once they are known."""

    source: ModelSource
    documents: Sequence[EncodedDocument]
    how: Pass

    @property
    def path(self) -> Path:
        """The file that holds them."""
        return self.how.folder / f"{self.source.name}.safetensors"

    def are_known(self) -> bool:
        """Whether there is nothing to compute: the file is of this very model, text and pass."""
        return not self.documents or self._read() is not None

    def compute(self, model: Model) -> NDArray[np.float32]:
        """Run the model on all documents.

        Raises:
            CheckpointError: the model gives a token a log-probability that is not finite.
        """
        scores = _score(model, self.documents, self.how, self.source)
        _check_finite(self.source.name, scores)
        return torch.cat(scores).numpy()

    def save(self, flat: NDArray[np.float32]) -> None:
        """Keep what `compute` gave."""
        save_arrays(self.path, {"log_p": flat, "key": self._key()})
        logger.info("scored %d documents with %s", len(self.documents), self.source.name)

    def read(self) -> list[Tensor]:
        """Nats, float32 [T], one tensor a document; they must be known."""
        if not self.documents:
            return []
        flat = self._read()
        assert flat is not None
        return list(torch.split(torch.from_numpy(flat), [document.num_tokens for document in self.documents]))

    def _read(self) -> NDArray[np.float32] | None:
        if not self.path.is_file():
            return None
        try:
            arrays = load_arrays(self.path)
        except ArtifactError as error:
            logger.warning("%s is computed again: %s", self.source.name, error)
            return None
        return arrays["log_p"] if np.array_equal(arrays["key"], self._key()) else None

    def _key(self) -> NDArray[np.uint8]:
        tokens = hashlib.sha256()
        for document in self.documents:
            tokens.update(np.array([len(document.ids), *document.ids], dtype="<i8").tobytes())
        # The batch size belongs to the key because the last bit of a matrix product depends on the shape.
        shape = [self.how.seq_length, self.how.stride, self.how.batch_tokens]
        key = fingerprint([self.source.fingerprint, tokens.hexdigest(), *shape])
        return np.frombuffer(bytes.fromhex(key), dtype=np.uint8)


def run_models(wanted: Sequence[Scores], team: Team) -> None:
    """Compute and save what is not known; all ranks of the team call it.

    One model at a time is on a device, and the one after it on its way to host memory.

    Raises:
        CheckpointError: a model gives a token a log-probability that is not finite.
    """
    unknown = [scores for scores in wanted if not scores.are_known()]
    team.wait()  # everybody has looked before anybody writes, so all have the same list
    turns = list(team.turns(len(unknown)))
    with ThreadPoolExecutor(1, "save") as disk:  # which takes its time while the next model runs
        saved = []
        for (index, is_ours), following in itertools.zip_longest(turns, turns[1:]):
            after = unknown[following[0]].source if following else None
            found = _run(unknown[index], after, is_ours=is_ours)
            if found is not None and team.leads_group:
                saved.append(disk.submit(unknown[index].save, found))
            for one in filter(Future.done, saved):
                one.result()  # a disk that refuses one refuses the others
    for one in saved:
        one.result()
    team.wait()


def _run(scores: Scores, after: ModelSource | None, *, is_ours: bool) -> NDArray[np.float32] | None:
    model = scores.source.load()
    if after is not None:
        after.prefetch()
    return scores.compute(model) if is_ours else None


def _encode(
    document: HeldOutDocument,
    encode: Callable[[str], Sequence[int]],
    tokenizer: Decoder,
    seq_length: int | None,
) -> EncodedDocument:
    text, ids = document.text, tuple(encode(document.text))
    if len(ids) < 2:
        raise CorpusError(
            f"document {text[:40]!r} has {len(ids)} tokens, so none to score; remove it from the split."
        )
    source, context = document.source or "", 0
    if source:
        context = int(num_source_tokens(len(ids), len(encode(source)))) - 1
    counted = text.removeprefix(source)
    is_truncated = seq_length is not None and len(ids) > seq_length + 1
    if is_truncated and seq_length is not None:
        ids, context = ids[: seq_length + 1], min(context, seq_length)
        counted = tokenizer.decode(
            ids[context + 1 :], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
    return EncodedDocument(ids, len(counted.encode()), is_truncated, context)


@torch.inference_mode()
def _score(
    model: Model, documents: Sequence[EncodedDocument], how: Pass, source: ModelSource
) -> list[Tensor]:
    scores = [torch.empty(document.num_tokens) for document in documents]
    stride = how.seq_length if how.stride is None else how.stride
    every = [
        window
        for n, document in enumerate(documents)
        for window in windows(n, document.num_tokens, seq_length=how.seq_length, stride=stride)
    ]
    order: list[Window] = []
    found: list[Tensor] = []
    said = time.monotonic()
    for chosen, run in _groups([one.length for one in every], how.batch_tokens, packs=source.packs):
        if time.monotonic() - said > _SAY_SECONDS:
            logger.info("%s: %d of %d texts", source.name, len(order), len(every))
            said = time.monotonic()
        batch = [every[n] for n in chosen]
        rows = [torch.tensor(documents[one.document].ids[one.start : one.end + 1]) for one in batch]
        order += batch
        # Read after the last batch, so that the device never waits for this process.
        found.append(run(model, rows, how.device).to("cpu", non_blocking=True))
    device.wait(how.device)
    log_p_N = torch.cat(found)
    for window, log_p_T in zip(order, torch.split(log_p_N, [one.length for one in order]), strict=True):
        skipped = window.scored_from - window.start
        scores[window.document][window.scored_from : window.end] = log_p_T[skipped:]
    return scores


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


def _check_finite(name: str, scores: Sequence[Tensor]) -> None:
    for n, score_T in enumerate(scores):
        if not torch.isfinite(score_T).all():
            raise CheckpointError(
                f"{name} gives document {n} of the evaluation a log-probability that is not finite: "
                "its training has diverged; see its metrics.jsonl and train it again with a lower optim.lr."
            )
