"""tf-idf of texts: scikit-learn's numbers, counted in C++.

`TfidfVectorizer` gives the terms, the columns and, bit for bit, the values of scikit-learn's class of that
name with its defaults: lower-cased terms, smoothed idf `ln((1 + N) / (1 + df)) + 1`, rows of length 1. Two
things are its own:

- Upstream's words (`tokenizer="upstream"`) are scikit-learn's without those that start with a digit, whether
  or not there are stop words.
- `fit` reads a stream. It counts in tables of up to `memory_bytes`; full tables go to disk in the order of
  their terms, and are merged in the end. To choose `max_features` it needs 16 bytes a distinct term besides,
  for up to 2**27 of them (2 GiB), and of course what the chosen terms take.

Among equally frequent terms scikit-learn's choice is what numpy's unstable sort makes of them, and so is that
of `fit`. Of more than 2**27 distinct terms, which scikit-learn has no memory for, it takes the first ones.

N documents, F terms.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from xelm_nemo import device
from xelm_nemo._csrc import AnalyzerSettings, FirstUse, TermCounter, Tfidf
from xelm_nemo.errors import ConfigError
from xelm_nemo.files import scratch_folder

Part = tuple[NDArray[np.float64], NDArray[np.int32], NDArray[np.int64]]  # values, columns, starts of rows
ANALYZERS = ("word", "char_wb")
TOKENIZERS = ("upstream", "sklearn")
_MOST_TERMS_TO_SORT = 1 << 27
_CHARACTERS_A_BATCH = 1 << 24


class TfidfVectorizer:
    """Texts to rows of a sparse matrix; `fit` or `restored` makes it ready.

    Attributes:
        terms_: the vocabulary in the order of its code points, F of them.
        idf_: [F] float64.
        num_documents_: N of `fit`.
    """

    terms_: list[str]
    idf_: NDArray[np.float64]
    num_documents_: int

    def __init__(
        self,
        *,
        analyzer: str = "word",
        tokenizer: str = "upstream",
        ngram_range: Sequence[int] = (1, 1),
        stop_words: Collection[str] | None = None,
        max_features: int | None = None,
        num_threads: int | None = None,
        memory_bytes: int = 2 << 30,
    ) -> None:
        """Take the settings; nothing is read yet.

        Args:
            analyzer: "word", or "char_wb" for n-grams of characters within words, which have no use for
                `tokenizer` and `stop_words`.
            tokenizer: "upstream" leaves out words that start with a digit, "sklearn" keeps them.
            ngram_range: the shortest and the longest n-gram, in words or characters.
            stop_words: words that are left out, in lower case; "english" is scikit-learn's list.
            max_features: how many terms to keep, the most frequent ones; None keeps all.
            num_threads: None takes one for each processor. The result is the same with any number.
            memory_bytes: of the tables of `fit`.

        Raises:
            ConfigError: a setting that cannot work.
        """
        _check(analyzer, tokenizer, ngram_range, max_features)
        self.analyzer, self.tokenizer = analyzer, tokenizer
        self.ngram_range = tuple(ngram_range)
        self.stop_words = _stop_words(stop_words)
        self.max_features = max_features
        self.num_threads = num_threads or device.cores()
        self.memory_bytes = memory_bytes

    @classmethod
    def restored(cls, terms: Sequence[str], idf: NDArray[np.float64], **settings: Any) -> Self:
        """The vectorizer that `fit` once made: its terms in order, its idf [F], and its settings."""
        vectorizer = cls(**settings)
        vectorizer.terms_, vectorizer.idf_ = list(terms), idf
        return vectorizer

    def fit(self, texts: Iterable[str]) -> Self:
        """Learn terms and idf from texts, which are read once and not kept.

        Raises:
            ConfigError: there is no term in them.
            ArtifactError: there is no room for the tables that go to the folder of temporary files.
        """
        with scratch_folder("xelm_terms_") as folder:
            counter = TermCounter(
                self._settings,
                list(self.stop_words),
                num_threads=self.num_threads,
                memory_bytes=self.memory_bytes,
                folder=str(folder),
            )
            for batch in _batches(texts):
                counter.add(batch)
            self.terms_, document_frequency = _chosen(counter, self.max_features)
        self.num_documents_ = counter.num_documents
        if not self.terms_:
            raise too_few_terms(self.analyzer, 0, self.num_documents_)
        self.idf_ = _smoothed_idf(document_frequency, self.num_documents_)
        self.__dict__.pop("in_cpp", None)
        self.__dict__.pop("vocabulary_", None)
        return self

    def fit_transform(self, texts: Iterable[str]) -> Any:
        """Learn from texts and transform them; the same rows as `transform` gives, but for their order.

        As with scikit-learn, terms lie in a row in the order in which the corpus first showed them, and are
        added up in this order.
        """
        texts = list(texts)
        return self._matrix(self.fit(texts).parts(texts, by_first_use=True))

    def transform(self, texts: Iterable[str]) -> Any:
        """The [N, F] float64 `scipy.sparse.csr_matrix` of texts, which are read once and not kept."""
        return self._matrix(self.parts(texts))

    def parts(self, texts: Iterable[str], *, by_first_use: bool = False) -> Iterator[Part]:
        """The rows of texts, which are read once and not kept: some at a time, as values, columns and starts.

        Args:
            texts: any; with `by_first_use` all of those that `fit` has read.
            by_first_use: in the order of `fit_transform`, else in that of `transform`.
        """
        first_use = FirstUse() if by_first_use else None
        for batch in _batches(texts):
            yield self.in_cpp.transform(batch, first_use=first_use, num_threads=self.num_threads)

    @cached_property
    def vocabulary_(self) -> dict[str, int]:
        """The column of each term."""
        return {term: column for column, term in enumerate(self.terms_)}

    @cached_property
    def in_cpp(self) -> Tfidf:
        """What does the work of `transform`."""
        return Tfidf(self._settings, list(self.stop_words), self.terms_, self.idf_)

    @property
    def _settings(self) -> AnalyzerSettings:
        shortest, longest = self.ngram_range
        return AnalyzerSettings(
            characters=self.analyzer == "char_wb",
            drops_numbers=self.tokenizer == "upstream",
            shortest=shortest,
            longest=longest,
        )

    def _matrix(self, parts: Iterable[Part]) -> Any:
        from scipy.sparse import csr_matrix, vstack

        matrices = []
        for values, columns, starts in parts:
            index_type = np.int32 if starts[-1] <= np.iinfo(np.int32).max else np.int64
            indices = columns.astype(index_type, copy=False), starts.astype(index_type, copy=False)
            matrices.append(csr_matrix((values, *indices), shape=(len(starts) - 1, len(self.terms_))))
        if not matrices:
            return csr_matrix((0, len(self.terms_)))
        return matrices[0] if len(matrices) == 1 else vstack(matrices, format="csr")


def too_few_terms(analyzer: str, num_terms: int, num_documents: int) -> ConfigError:
    """What to say of texts in which hardly a term is found."""
    return ConfigError(
        f"clustering.analyzer={analyzer!r} finds {num_terms} terms in {num_documents} documents, too few to "
        "tell them apart; use clustering.analyzer=char_wb, or look at the corpus."
    )


def _check(analyzer: str, tokenizer: str, ngram_range: Sequence[int], max_features: int | None) -> None:
    if analyzer not in ANALYZERS:
        raise ConfigError(f"clustering.analyzer={analyzer!r} is unknown; use one of {list(ANALYZERS)}.")
    if tokenizer not in TOKENIZERS:
        raise ConfigError(f"tokenizer={tokenizer!r} is unknown; use one of {list(TOKENIZERS)}.")
    if len(ngram_range) != 2 or not 1 <= ngram_range[0] <= ngram_range[1]:
        raise ConfigError(
            f"clustering.ngram_range={list(ngram_range)} is not a shortest and a longest n-gram; "
            "use for example [1,3]."
        )
    if max_features is not None and max_features < 2:
        raise ConfigError(
            f"clustering.max_features={max_features} keeps fewer than two terms; use 2 or more, "
            "or null for all."
        )


def _stop_words(words: Collection[str] | None) -> frozenset[str]:
    if not isinstance(words, str):
        return frozenset(words or ())
    if words != "english":
        raise ConfigError(f"stop_words={words!r} is one string; give a list of words, or 'english'.")
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return frozenset(ENGLISH_STOP_WORDS)


def _chosen(counter: TermCounter, max_features: int | None) -> tuple[list[str], NDArray[np.int64]]:
    """The terms to keep and in how many documents each is."""
    if max_features is None:
        return counter.all()
    occurrences = counter.occurrences(most=_MOST_TERMS_TO_SORT + 1)
    if len(occurrences) > _MOST_TERMS_TO_SORT:
        return counter.most_frequent(max_features)
    if len(occurrences) <= max_features:
        return counter.all()
    np.negative(occurrences, out=occurrences)
    return counter.at(np.sort(occurrences.argsort()[:max_features]))  # scikit-learn's very call, for its ties


def _smoothed_idf(document_frequency: NDArray[np.int64], num_documents: int) -> NDArray[np.float64]:
    # numpy's logarithm, as in scikit-learn: others differ in the last bit.
    return np.asarray(np.log((num_documents + 1) / (document_frequency + 1.0)) + 1.0, np.float64)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Lists of texts, each of few characters; a list is one batch, since it is in memory anyway."""
    if isinstance(texts, list):
        yield from [texts[:]] if texts else []
        return
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= _CHARACTERS_A_BATCH:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
