"""What upstream's `tfidf.pkl` and `kmeans.pkl` hold, printed for another process; see `upstream.py`.

Attributes are read and no method is called, so that it does not matter which scikit-learn wrote them.
"""

import json
import pickle
import sys
from pathlib import Path
from typing import Any, BinaryIO

from xelm_nemo.clustering.sandbox import confine
from xelm_nemo.clustering.unpickle import Array, Foreign, Refused, Unpickler

FILES = ("tfidf.pkl", "kmeans.pkl")
_PLAIN = {  # what transforms as ours does
    "analyzer": "word",
    "ngram_range": (1, 1),
    "lowercase": True,
    "strip_accents": None,
    "token_pattern": r"(?u)\b\w\w+\b",
    "preprocessor": None,
    "tokenizer": None,
    "binary": False,
    "use_idf": True,
    "sublinear_tf": False,
}


def extract(tfidf: Any, kmeans: Any) -> tuple[list[str], dict[str, Array]]:
    """The terms in the order of their columns, and the arrays `idf`, `components` and `centroids`."""
    steps = {type(step).__name__: step for _, step in _of(tfidf, "Pipeline")["steps"]}
    wanted = ["NumberNormalizingVectorizer", "TruncatedSVD", "Normalizer"]
    if list(steps) != wanted:
        raise Refused(f"the steps {list(steps)} where {wanted} should be")
    vectorizer = _of(steps[wanted[0]], wanted[0])
    _check_settings(vectorizer, _of(steps["Normalizer"], "Normalizer"))
    terms = _terms(vectorizer["vocabulary_"])
    centroids = (kmeans if isinstance(kmeans, dict) else _of(kmeans, "KMeans"))["cluster_centers"]
    components = _of(steps["TruncatedSVD"], "TruncatedSVD")["components_"]
    arrays = {"idf": _idf(vectorizer), "components": components, "centroids": centroids}
    if other := [name for name, array in arrays.items() if not isinstance(array, Array)]:
        raise Refused(f"no array under {other[0]}")
    return terms, {name: array.check() for name, array in arrays.items()}


def _terms(columns: dict[Any, Any]) -> list[str]:
    other = [term for term in columns if type(term) is not str or not _is_unicode(term)]
    if other:
        raise Refused(f"the term {other[0]!r:.80}, which is no text")
    terms = sorted(columns, key=columns.__getitem__)
    if [columns[term] for term in terms] != list(range(len(terms))):
        raise Refused("a vocabulary whose columns are not numbered from 0")
    return terms


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _check_settings(vectorizer: dict[str, Any], normalizer: dict[str, Any]) -> None:
    settings = {**_PLAIN, **{key: value for key, value in vectorizer.items() if key in _PLAIN}}
    settings |= {key: value for key, value in vars(vectorizer["_tfidf"]).items() if key in _PLAIN}
    if other := {key: value for key, value in settings.items() if value != _PLAIN[key]}:
        raise Refused(
            f"a vectorizer with {other!r:.200}, where { ({key: _PLAIN[key] for key in other}) } is read"
        )
    if "#NUMBER" in vectorizer["vocabulary_"]:
        raise Refused("the term '#NUMBER', which was to be a stop word")
    if normalizer.get("norm") != "l2":
        raise Refused(f"a last step with norm={normalizer.get('norm')!r}")


def _idf(vectorizer: dict[str, Any]) -> Array:
    transformer = _of(vectorizer["_tfidf"], "TfidfTransformer")
    diagonal = transformer.get("_idf_diag")  # scikit-learn before 1.5
    idf: Array = transformer["idf_"] if diagonal is None else _of(diagonal, "dia_matrix")["data"]
    return Array(idf.code, (idf.shape[-1],), False, idf.raw).check()


def _of(value: Any, name: str) -> dict[str, Any]:
    """The attributes of an object of that class."""
    if not isinstance(value, Foreign) or type(value).__name__ != name:
        raise Refused(f"{type(value).__name__} where {name} should be")
    return vars(value)


def _read(file: BinaryIO) -> Any:
    try:
        return Unpickler(file).load()
    except (pickle.UnpicklingError, EOFError) as error:
        raise Refused(f"no whole pickle ({error})") from error


def main() -> None:
    """Read the two files of the folder that is named, and write a line of JSON and then the arrays' bytes."""
    folder = Path(sys.argv[1])
    files = [(folder / name).open("rb") for name in FILES]
    size = sum((folder / name).stat().st_size for name in FILES)
    confined = confine(memory_bytes=(1 << 30) + 10 * size, cpu_seconds=60 + size // (1 << 20))
    name, result, arrays = FILES[0], dict[str, Any](), dict[str, Array]()
    try:
        tfidf = _read(files[0])
        name = FILES[1]
        kmeans = _read(files[1])
        name = "the pair"
        terms, arrays = extract(tfidf, kmeans)
        layout = {key: [array.code, array.shape, bool(array.fortran)] for key, array in arrays.items()}
        result = {"terms": terms, "arrays": layout}
    except Refused as error:
        result = {"refused": f"{name} holds {error}"}
    except Exception as error:  # whatever a hostile or damaged file leads to
        result = {"refused": f"{name} cannot be read ({error!r:.200})"}
    output = sys.stdout.buffer
    output.write(json.dumps(result | {"confined": confined}).encode() + b"\n")
    for array in arrays.values():
        output.write(array.raw)
    output.flush()
