"""Examples of instruction data that have nothing left to score, for their source alone fills the context."""

import logging
from collections.abc import Mapping, Sequence

from xelm_nemo.errors import CorpusError
from xelm_nemo.evaluation.documents import EncodedDocument, HeldOutDocument

logger = logging.getLogger(__name__)
Subsets = Mapping[str, Sequence[HeldOutDocument]]


def part_without_target(
    subsets: Subsets, encoded: Sequence[EncodedDocument], seq_length: int
) -> tuple[Subsets, Subsets]:
    """Part documents into those that have a token that counts, and those that have none.

    Args:
        subsets: name -> documents.
        encoded: the tokens of all subsets' documents in a row.
        seq_length: context length, for the message.

    Raises:
        CorpusError: a subset has none that counts.
    """
    start, kept, left_out = 0, {}, {}
    for name, documents in subsets.items():
        tokens = encoded[slice(start, start := start + len(documents))]
        pairs = list(zip(documents, tokens, strict=True))
        kept[name] = [document for document, own in pairs if own.num_counted]
        left_out[name] = [document for document, own in pairs if not own.num_counted]
        if not kept[name]:
            raise CorpusError(
                f"{name} has only examples such as {documents[0].text[:40]!r}, each with a source that fills "
                f"training.seq_length={seq_length}, so no target is left to score; set evaluation.stride."
            )
    return kept, left_out


def warn_of_left_out(left_out: Subsets, seq_length: int) -> None:
    """Say how many examples of each subset are left out, and which is the first."""
    for name, documents in left_out.items():
        if documents:
            logger.warning(
                "evaluate: %s: %d examples are left out, for their source fills training.seq_length=%d and "
                "no target remains; the first begins with %r. Set evaluation.stride to score them too.",
                *(name, len(documents), seq_length, documents[0].text[:40]),
            )
