"""Clusters of languages from how alike their grammars are.

Distances are 1 minus the cosine of lang2vec's `syntax_average` features (URIEL), each norm over a
language's own known features; the 97 feature columns are those that vary over X-ELM's 16. The package's table
holds 68 languages; for others lang2vec's own data are read where it is installed (`uriel.py`).
Where both the numbers of clusters and of languages are powers of two, the algorithm is X-ELM's, which halves
the number of clusters again and again (its `lang_clustering`, single link); else it is average-link
clustering on the same distances.
"""

import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xelm_nemo.clustering.uriel import syntax_features
from xelm_nemo.errors import ConfigError

# The order decides ties and numbering, so this set is always taken in X-ELM's own order.
XELM_LANGUAGES = (
    *("en", "fr", "es", "de", "el", "bg", "ru", "tr"),
    *("ar", "vi", "zh", "hi", "sw", "ur", "ja", "ko"),
)


def typology_clusters(languages: Sequence[str], num_clusters: int) -> dict[str, int]:
    """The cluster of each language.

    X-ELM's halving numbers clusters in the order in which its last round made them; average link numbers them
    in the order of their first languages.

    Args:
        languages: ISO 639-1 codes. Their order breaks ties and numbers clusters, except for X-ELM's 16.
        num_clusters: 1 to the number of languages.

    Raises:
        ConfigError: a language that has no distances or comes twice, or a number of clusters out of range.
    """
    languages = XELM_LANGUAGES if set(languages) == set(XELM_LANGUAGES) else tuple(languages)
    _check(languages, num_clusters)
    distance = language_distances(languages)
    halves = _is_power_of_two(num_clusters) and _is_power_of_two(len(languages))
    clusters = (_halve if halves else _average_link)(distance, num_clusters)
    return {languages[i]: k for k, members in enumerate(clusters) for i in sorted(members)}


def nearest_donor(language: str, among: Sequence[str]) -> tuple[str, float]:
    """The nearest other language of `among` and its distance, the first one on a tie.

    Raises:
        ConfigError: a language that has no distances, or nothing to choose from.
    """
    others = [other for other in among if other != language]
    if not others:
        raise ConfigError(
            f"clustering.languages={list(among)} has no donor for {language!r}; add other languages."
        )
    distance = language_distances([language, *others])[0, 1:]
    return others[distance.argmin()], float(distance.min())


def nearest_donors(known: Sequence[str]) -> dict[str, tuple[str, float]]:
    """For each language of the package's table that is not among those known, its nearest donor."""
    return {language: nearest_donor(language, known) for language in _table()[0] if language not in known}


def with_distances(languages: Sequence[str]) -> list[str]:
    """Those of the languages that the table or lang2vec holds."""
    known, _ = _table()
    unknown = [lang for lang in languages if lang not in known]
    features = (syntax_features(unknown) if unknown else None) or {}
    return [lang for lang in languages if lang in known or not np.isnan(features.get(lang, np.nan)).all()]


def language_distances(languages: Sequence[str]) -> NDArray[np.float64]:
    """[L, L] distances, symmetric, zero on the diagonal.

    Raises:
        ConfigError: a language that neither the table nor lang2vec holds.
    """
    known, matrix = _table()
    unknown = [language for language in languages if language not in known]
    if unknown:
        return _with_lang2vec(languages, unknown)
    index = [known[language] for language in languages]
    return matrix[np.ix_(index, index)]


def language_tree(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """[L - 1, 4], scipy's linkage matrix: average link on [L, L] distances."""
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    tree: NDArray[np.float64] = linkage(squareform(distance), "average")
    return tree


def _with_lang2vec(languages: Sequence[str], unknown: Sequence[str]) -> NDArray[np.float64]:
    features = syntax_features([*XELM_LANGUAGES, *languages])
    if features is None:
        missing, more = list(unknown), "pip install lang2vec, "
    else:
        missing, more = [lang for lang in unknown if np.isnan(features[lang]).all()], ""
    if missing:
        raise ConfigError(
            f"clustering.languages={list(languages)} has {missing}, which are not in "
            f"xelm_nemo/data/typology_distances.json; {more}leave them out, use clustering.method=tfidf, "
            f"or use codes among {' '.join(_table()[0])}."
        )
    assert features is not None
    base = np.stack([features[lang] for lang in XELM_LANGUAGES])
    # Columns that say the same of all of X-ELM's languages, or nothing, are left out.
    varies = ~(np.isnan(base).all(0) | (base == 0).all(0) | (base == 1).all(0))
    rows = np.stack([features[lang] for lang in languages])[:, varies]
    value, present = np.nan_to_num(rows), ~np.isnan(rows)
    norm = np.sqrt((value**2).sum(1))
    distance: NDArray[np.float64] = 1 - (value * present) @ (value * present).T / np.outer(norm, norm)
    np.fill_diagonal(distance, 0)
    return distance


@cache
def _table() -> tuple[dict[str, int], NDArray[np.float64]]:
    table: dict[str, Any] = json.loads((files("xelm_nemo") / "data" / "typology_distances.json").read_bytes())
    return {language: i for i, language in enumerate(table["langs"])}, np.array(table["matrix"], np.float64)


def _check(languages: Sequence[str], num_clusters: int) -> None:
    twice = sorted({language for language in languages if languages.count(language) > 1})
    if twice:
        raise ConfigError(
            f"clustering.languages={list(languages)} has {twice} more than once; name each once."
        )
    if not 1 <= num_clusters <= len(languages):
        raise ConfigError(
            f"clustering.num_clusters={num_clusters} cannot divide {len(languages)} languages "
            f"{list(languages)}; use 1 to {len(languages)}."
        )


def _is_power_of_two(n: int) -> bool:
    return n > 0 and n & (n - 1) == 0


def _halve(distance: NDArray[np.float64], num_clusters: int) -> list[list[int]]:
    clusters = [[i] for i in range(len(distance))]
    while len(clusters) > num_clusters:
        clusters = _paired(distance, clusters)
    return clusters


def _paired(distance: NDArray[np.float64], clusters: list[list[int]]) -> list[list[int]]:
    """Every cluster joined with another, nearest pairs first (single link), in the order of joining."""

    def single_link(pair: tuple[int, int]) -> float:
        return float(distance[np.ix_(clusters[pair[0]], clusters[pair[1]])].min())

    free = set(range(len(clusters)))
    joined = []
    for a, b in sorted(combinations(range(len(clusters)), 2), key=single_link):
        if {a, b} <= free:
            free -= {a, b}
            joined.append(clusters[a] + clusters[b])
    return joined


def _average_link(distance: NDArray[np.float64], num_clusters: int) -> list[list[int]]:
    from scipy.cluster.hierarchy import cut_tree

    if num_clusters == len(distance):
        return [[i] for i in range(len(distance))]
    label = cut_tree(language_tree(distance), num_clusters)[:, 0]
    members = [np.flatnonzero(label == k).tolist() for k in np.unique(label)]
    return sorted(members)
