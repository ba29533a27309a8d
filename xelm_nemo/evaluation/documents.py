"""Held-out documents, and their tokens as models see them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from xelm_nemo.corpus.examples import num_source_tokens
from xelm_nemo.errors import CorpusError
from xelm_nemo.router.pieces import Decoder


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
