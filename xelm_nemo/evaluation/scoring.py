"""Log-probabilities that one model gives the tokens of held-out documents, kept on disk once known.

Shape letters: B documents of a batch, S sequence, T scored tokens of a document, V vocabulary.
"""

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from xelm_nemo.errors import CheckpointError, CorpusError
from xelm_nemo.files import fingerprint, load_arrays, save_arrays
from xelm_nemo.router.prefix import Decoder

logger = logging.getLogger(__name__)

Model = Callable[[Tensor], Tensor]  # tokens [B, S] -> logits [B, S, V], causal


@dataclass(frozen=True)
class HeldOutDocument:
    """A document to evaluate on; without a language or a cluster it counts in the overall figures only."""

    text: str
    lang: str | None = None
    cluster: int | None = None


@dataclass(frozen=True)
class EncodedDocument:
    """The tokens of a document that a model sees; all but the first are scored.

    Attributes:
        ids: token ids, cut on the right to the context length plus one.
        num_bytes: UTF-8 bytes of the text that the ids stand for.
        is_truncated: whether text was cut off.
    """

    ids: tuple[int, ...]
    num_bytes: int
    is_truncated: bool

    @property
    def num_tokens(self) -> int:
        """Number of scored tokens, T."""
        return len(self.ids) - 1


@dataclass(frozen=True)
class ModelSource:
    """A model that is loaded only when it is needed.

    Attributes:
        name: how reports call it, also the name of its file of log-probabilities.
        fingerprint: changes when the weights do.
        load: returns the model, ready to evaluate (no dropout) on the device of the evaluation.
    """

    name: str
    fingerprint: str
    load: Callable[[], Model]


def encode_documents(
    documents: Sequence[HeldOutDocument],
    *,
    encode: Callable[[str], Sequence[int]],
    tokenizer: Decoder,
    seq_length: int,
) -> list[EncodedDocument]:
    """Tokenise documents, one a sequence, cut on the right to seq_length + 1 tokens.

    Raises:
        CorpusError: a document has no token to score.
    """
    return [_encode(document.text, encode, tokenizer, seq_length) for document in documents]


def score_documents(
    source: ModelSource,
    documents: Sequence[EncodedDocument],
    *,
    batch_size: int,
    device: torch.device | str,
    folder: Path,
) -> list[Tensor]:
    """Log-probability of every scored token, from the file in `folder` if it is of this very model and text.

    Args:
        source: the model; loaded only if its scores are not on disk.
        documents: what to score.
        batch_size: documents a forward pass.
        device: where the model is.
        folder: holds `<name>.safetensors`, written when all documents of a model are scored.

    Returns:
        nats, float32 [T], one tensor a document.

    Raises:
        CheckpointError: the model gives a token a log-probability that is not finite.
    """
    path = folder / f"{source.name}.safetensors"
    key = _cache_key(source, documents, batch_size)
    flat = _load_scores(path, key)
    if flat is None:
        scores = _score(source.load(), documents, batch_size, device)
        _check_finite(source.name, scores)
        flat = torch.cat(scores).numpy()
        save_arrays(path, {"log_p": flat, "key": key})
        logger.info("scored %d documents with %s", len(documents), source.name)
    return list(torch.split(torch.from_numpy(flat), [document.num_tokens for document in documents]))


def _encode(
    text: str, encode: Callable[[str], Sequence[int]], tokenizer: Decoder, seq_length: int
) -> EncodedDocument:
    ids = tuple(encode(text))
    if len(ids) < 2:
        raise CorpusError(
            f"document {text[:40]!r} has {len(ids)} tokens, so none to score; remove it from the split."
        )
    is_truncated = len(ids) > seq_length + 1
    if is_truncated:
        ids = ids[: seq_length + 1]
        text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return EncodedDocument(ids, len(text.encode()), is_truncated)


def _cache_key(
    source: ModelSource, documents: Sequence[EncodedDocument], batch_size: int
) -> NDArray[np.uint8]:
    tokens = hashlib.sha256()
    for document in documents:
        tokens.update(np.array([len(document.ids), *document.ids], dtype="<i8").tobytes())
    # The batch size belongs to the key because the last bit of a matrix product depends on the shape.
    key = fingerprint([source.fingerprint, tokens.hexdigest(), batch_size])
    return np.frombuffer(bytes.fromhex(key), dtype=np.uint8)


def _load_scores(path: Path, key: NDArray[np.uint8]) -> NDArray[np.float32] | None:
    if not path.is_file():
        return None
    arrays = load_arrays(path)
    return arrays["log_p"] if np.array_equal(arrays["key"], key) else None


@torch.inference_mode()
def _score(
    model: Model, documents: Sequence[EncodedDocument], batch_size: int, device: torch.device | str
) -> list[Tensor]:
    # Longest first: little padding, and a batch that does not fit in memory fails at once.
    order = sorted(range(len(documents)), key=lambda n: -len(documents[n].ids))
    scores = [torch.empty(0)] * len(documents)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        rows = [torch.tensor(documents[n].ids) for n in batch]
        tokens_BS = pad_sequence(rows, batch_first=True).to(device)
        logits_BSV = model(tokens_BS[:, :-1])
        for row, n in enumerate(batch):
            num_tokens = documents[n].num_tokens
            # One document at a time: float32 logits of a batch would fill the card at 256k words.
            log_p_TV = torch.log_softmax(logits_BSV[row, :num_tokens].float(), dim=-1)
            target_T1 = tokens_BS[row, 1 : num_tokens + 1, None]
            scores[n] = log_p_TV.gather(-1, target_T1)[:, 0].cpu()
    return scores


def _check_finite(name: str, scores: Sequence[Tensor]) -> None:
    for n, score_T in enumerate(scores):
        if not torch.isfinite(score_T).all():
            raise CheckpointError(
                f"{name} gives document {n} of the evaluation a log-probability that is not finite: "
                "its training has diverged; see its metrics.jsonl and train it again with a lower optim.lr."
            )
