"""`tfidf.pkl` and `kmeans.pkl` for users of the original programs: their classes by name, our numbers.

The classes are not here, so the pickler is told what they are called. Both places where scikit-learn has kept
the idf are filled, the one before its version 1.5 and the one since.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xelm_nemo.clustering.upstream_pickles import FILES
from xelm_nemo.files import write_atomic

_TEXT = "sklearn.feature_extraction.text"
_SKLEARN = "1.2.1"  # the original programs' own; other versions warn of it and read it
_CLASSES = {
    name: type(name, (), {"place": place})
    for name, place in {
        "Pipeline": "sklearn.pipeline",
        "NumberNormalizingVectorizer": "__main__",
        "TfidfTransformer": _TEXT,
        "TruncatedSVD": "sklearn.decomposition._truncated_svd",
        "Normalizer": "sklearn.preprocessing._data",
        "KMeans": "kmeans_pytorch",
    }.items()
}


def write_upstream(
    folder: Path,
    terms: list[str],
    idf: NDArray[np.float64],
    components: NDArray[np.float64],
    centroids: NDArray[np.float32],
) -> None:
    """Write the two files into a folder.

    Args:
        folder: is made if it is not there.
        terms: F words, in the order of the columns.
        idf: [F].
        components: [D, F].
        centroids: [K, D].
    """
    import torch

    kmeans = _object(
        "KMeans",
        n_clusters=len(centroids),
        cluster_centers=torch.from_numpy(np.array(centroids, np.float32)),
        device=torch.device("cpu"),
        balanced=True,
    )
    steps = [
        ("tfidf", _vectorizer(terms, idf)),
        ("svd", _svd(components)),
        ("normalizer", _object("Normalizer", norm="l2", copy=False, _sklearn_version=_SKLEARN)),
    ]
    pipeline = _object("Pipeline", steps=steps, memory=None, verbose=False, _sklearn_version=_SKLEARN)
    for name, value in zip(FILES, (pipeline, kmeans), strict=True):
        buffer = io.BytesIO()
        _Pickler(buffer, protocol=4).dump(value)
        write_atomic(folder / name, buffer.getvalue())


_PYTHONS: Any = pickle._Pickler  # the one in C cannot be told


class _Pickler(_PYTHONS):
    """The pickler in Python, which can be told where a class is."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if obj not in _CLASSES.values():
            super().save_global(obj, name)
            return
        self.save(obj.place)
        self.save(obj.__name__)
        self.write(pickle.STACK_GLOBAL)
        self.memoize(obj)


def _object(kind: str, **attributes: Any) -> Any:
    value = _CLASSES[kind]()
    vars(value).update(attributes)
    return value


def _vectorizer(terms: list[str], idf: NDArray[np.float64]) -> Any:
    from scipy.sparse import diags

    transformer = _object(
        "TfidfTransformer",
        **{"norm": "l2", "use_idf": True, "smooth_idf": True, "sublinear_tf": False},
        **{"_idf_diag": diags(idf), "idf_": idf, "n_features_in_": len(idf), "_sklearn_version": _SKLEARN},
    )
    settings: dict[str, Any] = {
        **{"input": "content", "encoding": "utf-8", "decode_error": "strict", "strip_accents": None},
        **{"preprocessor": None, "tokenizer": None, "analyzer": "word", "lowercase": True},
        **{"token_pattern": r"(?u)\b\w\w+\b", "stop_words": ["#NUMBER"], "max_df": 1.0, "min_df": 1},
        **{"max_features": None, "ngram_range": (1, 1), "vocabulary": None, "binary": False},
        **{"dtype": np.float64, "norm": "l2", "use_idf": True, "smooth_idf": True, "sublinear_tf": False},
    }
    fitted = {"vocabulary_": {term: i for i, term in enumerate(terms)}, "fixed_vocabulary_": False}
    return _object(
        "NumberNormalizingVectorizer", **settings, **fitted, _tfidf=transformer, _sklearn_version=_SKLEARN
    )


def _svd(components: NDArray[np.float64]) -> Any:
    return _object(
        "TruncatedSVD",
        **{"n_components": len(components), "algorithm": "randomized", "n_iter": 5, "n_oversamples": 10},
        **{"power_iteration_normalizer": "auto", "random_state": None, "tol": 0.0},
        **{"components_": components, "n_features_in_": components.shape[1], "_sklearn_version": _SKLEARN},
    )
