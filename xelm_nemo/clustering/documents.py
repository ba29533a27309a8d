"""What clustering wants to know of a document; `xelm_nemo.corpus.documents.Document` is one."""

from collections.abc import Sequence
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
