"""What clustering wants to know of a document; `xelm_nemo.corpus.documents.Document` is one."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol


class ClusterableDocument(Protocol):
    """A document that can be put into a cluster."""

    @property
    def sp_id(self) -> str:
        """`<path>|<line>`."""

    @property
    def text(self) -> str:
        """What it says."""

    @property
    def lang(self) -> str | None:
        """Its language code, if known."""


Documents = Sequence[ClusterableDocument]
Corpus = Iterable[
    ClusterableDocument
]  # more than memory may hold: each time that it is gone through, it is read


@dataclass(frozen=True)
class Texts:
    """The texts of documents, read anew each time."""

    documents: Corpus

    def __iter__(self) -> Iterator[str]:
        return (document.text for document in self.documents)
