"""C++ parts of xelm_nemo; the sources are in csrc/."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

def balanced_assign(
    cost: NDArray[np.integer[Any]],
    cluster_of: NDArray[np.integer[Any]],
    price: NDArray[np.integer[Any]],
    settled: NDArray[np.integer[Any]],
    reach: int,
) -> tuple[NDArray[np.int32], NDArray[np.int64], int]:
    """Balance an assignment that is best at given prices; the total cost is then the least there is.

    Args:
        cost: [N, K] int32, of the documents that may move.
        cluster_of: [N], the cluster of each, where its cost + price is lowest.
        price: [K].
        settled: [K], how many further documents stay; other clusters are worse for them by more than `reach`.
        reach: by how much prices may move apart; 2**63 - 1 sets no limit.

    Returns:
        [N], the clusters; [K], the prices, each document still being where cost + price is lowest; and how
        many documents are still too many somewhere, which is 0 unless `reach` ended the work.

    Raises:
        ValueError: shapes that do not fit together, a cluster that is not the best, or no cluster at all.
    """

class AnalyzerSettings:
    """How a text is cut into terms."""

    def __init__(self, *, characters: bool, drops_numbers: bool, shortest: int, longest: int) -> None:
        """`characters` takes n-grams of characters within words, else n-grams of words are taken.

        `drops_numbers` leaves out words that start with a digit. `shortest` and `longest` are of n-grams.
        """

class TermCounter:
    """Counts the terms of a stream of documents, exactly and in bounded memory."""

    num_documents: int

    def __init__(
        self,
        settings: AnalyzerSettings,
        stop_words: list[str],
        *,
        num_threads: int,
        memory_bytes: int,
        folder: str,
    ) -> None:
        """Begin without any document; tables that are full go to files in `folder`."""

    def add(self, texts: list[str]) -> None:
        """Count documents. No other thread may change the list meanwhile.

        Raises:
            TypeError: an item is not a str.
            OSError: a file cannot be written.
        """

    def occurrences(self, most: int) -> NDArray[np.float64]:
        """How often each term occurs, in the order of code points; the first `most` terms."""

    def all(self) -> tuple[list[str], NDArray[np.int64]]:
        """All terms in order, and in how many documents each is."""

    def at(self, positions: NDArray[np.int64]) -> tuple[list[str], NDArray[np.int64]]:
        """As `all`, the terms at these ascending positions."""

    def most_frequent(self, limit: int) -> tuple[list[str], NDArray[np.int64]]:
        """As `all`, the terms that occur most often, of equally frequent ones the first."""

class FirstUse:
    """The order in which a corpus first shows its terms, whatever the parts that it is transformed in."""

    def __init__(self) -> None:
        """Begin before its first part."""

class Tfidf:
    """Turns documents into rows of a sparse matrix."""

    def __init__(
        self, settings: AnalyzerSettings, stop_words: list[str], terms: list[str], idf: NDArray[np.float64]
    ) -> None:
        """Take terms by column, and the idf of each.

        Raises:
            ValueError: a term comes twice, or there are not as many idf as terms.
        """

    def transform(
        self, texts: list[str], *, first_use: FirstUse | None = None, num_threads: int
    ) -> tuple[NDArray[np.float64], NDArray[np.int32], NDArray[np.int64]]:
        """Values, columns and where rows start; rows in the order of columns.

        With `first_use` they are in the order in which this part of a corpus, or one before, showed
        them first.

        No other thread may change the list meanwhile.

        Raises:
            TypeError: an item is not a str.
        """

class UnigramEncoder:
    """Texts to the ids of a SentencePiece unigram model, as Hugging Face's `tokenizers` gives them."""

    def __init__(
        self,
        pieces: list[str],
        scores: list[float],
        *,
        unk_id: int,
        charsmap: bytes,
        steps: list[str],
        cuts_at_whitespace: bool,
        raw_stoppers: list[str],
        stoppers: list[str],
    ) -> None:
        """Take pieces by id, and what is done to a text before it is cut into them.

        `charsmap` is SentencePiece's precompiled one, empty for none. The `steps` after it are strip_left,
        strip_right, spaces_to_space or spaces_to_meta, which join runs of spaces. `cuts_at_whitespace`
        leaves white space of every kind out. A text that has one of `raw_stoppers`, or one of `stoppers`
        after all steps, is not encoded.

        Raises:
            ValueError: an unknown step, an empty piece, one without a score, or a charsmap that is cut short.
        """

    def encode(self, texts: list[str], itemsize: int) -> list[bytes | None]:
        """The ids of each text, `itemsize` bytes each, 2 or 4; None for a text that is not encoded here.

        Those are texts with stoppers or half a surrogate pair, and some with letters that the charsmap may
        join to what follows. No other thread may change the list meanwhile.

        Raises:
            TypeError: an item is not a str.
            ValueError: another itemsize.
        """

class TokenPieces:
    """The tokens of a tokenizer that joins their bytes and reads the whole as UTF-8 (csrc/token_text.h)."""

    def __init__(self, pieces: list[bytes], is_special: list[bool], *, metas: str) -> None:
        """Take tokens by id; special ones are no text.

        `metas` says what U+2581 is: a character ("kept"), or a space. That one is "left_out_of_first", the
        first token that is not special, or "stripped" with all white space at both ends of the text.

        Raises:
            ValueError: another word, or lists of different lengths.
        """

    def __len__(self) -> int:
        """How many tokens there are."""

    def texts(self, ids: NDArray[np.int32]) -> list[str]:
        """What the first token, the first two, and so on, decode to.

        Raises:
            ValueError: an id that is no token's.
        """

class PrefixRouter:
    """Distances from prefixes of documents to centroids (csrc/prefix_router.h)."""

    def __init__(
        self,
        tfidf: Tfidf,
        *,
        components: NDArray[np.float64],
        products: NDArray[np.float64],
        squares: NDArray[np.float64],
    ) -> None:
        """Take the terms' rows [F, D], their products with the centroids [F, K], and the latter's |c|^2 [K].

        Raises:
            ValueError: shapes that do not fit together.
        """

    def distances(
        self, pieces: TokenPieces, ids: NDArray[np.int32], ends: list[int], *, num_threads: int
    ) -> NDArray[np.float64]:
        """d^2 [T, K] from the text before each token of documents whose ids lie one after another.

        Raises:
            ValueError: an id that is no token's, or `ends` that do not divide the ids.
        """

    def terms(
        self, pieces: TokenPieces, ids: NDArray[np.int32], ends: list[int], *, num_threads: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64], NDArray[np.int32]]:
        """What `distances` sums up: the terms that settle in the text before each token, and the open ones.

        Returns:
            where the settled terms of each of T prefixes start, and the end, [T + 1]; these terms; and the
            same of the open ones.

        Raises:
            ValueError: as `distances`.
        """

class PrefixStream:
    """A text that grows, and how far it is from the centroids; for one thread at a time."""

    def __init__(self, router: PrefixRouter) -> None:
        """Begin with the empty text."""

    def append(self, pieces: TokenPieces, ids: NDArray[np.int32]) -> NDArray[np.float64]:
        """d^2 [n, K] after each of n further tokens.

        Raises:
            ValueError: an id that is no token's.
        """

    def replace(self, texts: list[str]) -> NDArray[np.float64]:
        """d^2 [n, K] of n texts, each in the place of the one before.

        Raises:
            TypeError: an item is not a str.
        """

def sparse_times(
    starts: NDArray[np.int64],
    columns: NDArray[np.int32],
    values: NDArray[np.float64],
    rows: slice,
    dense: NDArray[np.float64],
    *,
    num_threads: int,
) -> NDArray[np.float64]:
    """Some rows of a sparse matrix A [N, F] times a dense [F, L] one.

    Args:
        starts: [N + 1], where the rows of A begin in the next two, and the end.
        columns: of the entries.
        values: of the entries; each result is added up in their order.
        rows: which ones, without a step.
        dense: [F, L].
        num_threads: changes no bit.

    Raises:
        ValueError: shapes that do not fit together.
    """

def add_transposed_times(
    starts: NDArray[np.int64],
    columns: NDArray[np.int32],
    values: NDArray[np.float64],
    rows: slice,
    dense: NDArray[np.float64],
    total: NDArray[np.float64],
    *,
    num_threads: int,
) -> None:
    """Add the transposed of these rows, [F, n], times a dense [n, L] to `total` [F, L], as `sparse_times`.

    Row after row is added, so that totals do not depend on how many of them are given at a time.
    """
