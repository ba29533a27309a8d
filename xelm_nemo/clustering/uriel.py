"""Syntactic features of languages, from the data files of lang2vec where it is installed.

Its code is not imported: it needs a setuptools that is older than the one Python comes with now.
"""

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_SYNTAX = "S_"


def syntax_features(languages: Sequence[str]) -> dict[str, NDArray[np.float64]] | None:
    """Language -> its features of the set `syntax_average`, NaN where unknown; None without lang2vec.

    Args:
        languages: ISO 639-1 or 639-3 codes.
    """
    spec = find_spec("lang2vec")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations))) / "data"
    long_code: dict[str, str] = json.loads((folder / "letter_codes.json").read_bytes())
    with np.load(folder / "feature_averages.npz") as table:
        columns = np.char.startswith(table["feats"], _SYNTAX)
        data = table["data"][:, columns, 0]
        row = {str(code): i for i, code in enumerate(table["langs"])}
    data[data < 0] = np.nan  # -1 says unknown
    unknown = np.full(data.shape[1], np.nan)
    codes = {language: long_code.get(language, language) for language in languages}
    return {language: data[row[code]] if code in row else unknown for language, code in codes.items()}
