"""Clusterers of the original programs, `tfidf.pkl` and `kmeans.pkl`: read without running them, and written.

A pickle is a program. Another process, which can neither open a file nor reach a network, reads the two with
a reader that runs nothing of them, and passes back words and numbers.
"""

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xelm_nemo.clustering.upstream_pickles import FILES
from xelm_nemo.errors import ArtifactError

log = logging.getLogger(__name__)

_PROGRAM = "import sys; sys.path.insert(0, sys.argv.pop(1)); from {module} import main; main()"
_ROOT = Path(__file__).resolve().parents[2]


def read_upstream(folder: Path) -> tuple[list[str], dict[str, NDArray[Any]]]:
    """Terms, and the arrays `idf` [F], `components` [D, F] (both float64) and `centroids` [K, D] float32.

    Raises:
        ArtifactError: a file is missing, damaged, or holds anything but such a clusterer.
    """
    for name in FILES:
        if not (folder / name).is_file():
            raise ArtifactError(
                f"clustering.source={str(folder)!r} has no {name}; give a folder with {' and '.join(FILES)}."
            )
    program = _PROGRAM.format(module="xelm_nemo.clustering.upstream_pickles")
    command = [sys.executable, "-I", "-S", "-c", program, str(_ROOT), str(folder)]
    run = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, env={})
    head, _, body = run.stdout.partition(b"\n")
    try:
        result = json.loads(head)
    except ValueError as error:
        raise ArtifactError(
            f"{folder}: the process that reads {' and '.join(FILES)} was stopped (exit {run.returncode}); "
            "they ask for more than a clusterer of their size needs."
        ) from error
    if not result["confined"]:
        log.warning(
            "clustering.source=%r: this system does not keep the process that reads %s from files and the "
            "network; nothing of them is run, but take them from those that you trust",
            str(folder),
            " and ".join(FILES),
        )
    if "refused" in result:
        raise ArtifactError(
            f"{folder}: {result['refused']}; nothing of it was run. "
            "Give a clusterer that train_clusterer wrote."
        )
    return result["terms"], _checked(folder, len(result["terms"]), _arrays(result["arrays"], body))


def _arrays(layout: dict[str, tuple[str, list[int], bool]], body: bytes) -> dict[str, NDArray[Any]]:
    arrays, start = {}, 0
    for name, (code, shape, fortran) in layout.items():
        dtype = np.dtype("<" + code)
        count = int(np.prod(shape))
        flat = np.frombuffer(body, dtype, count, start)
        wanted = np.float32 if name == "centroids" else np.float64
        arrays[name] = np.ascontiguousarray(flat.reshape(shape, order="F" if fortran else "C"), wanted)
        start += count * dtype.itemsize
    return arrays


def _checked(folder: Path, num_terms: int, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    shapes = {name: list(array.shape) for name, array in arrays.items()}
    dim = shapes["components"][:1]
    fits = shapes["components"] == [*dim, num_terms] and shapes["idf"] == [num_terms]
    fits = fits and len(shapes["centroids"]) == 2 and shapes["centroids"][1:] == dim
    if not (fits and all(array.size for array in arrays.values())):
        raise ArtifactError(f"{folder} has {num_terms} terms and {shapes}, which do not belong together.")
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise ArtifactError(f"{folder} has numbers that are not finite; fetch its files again.")
    return arrays
