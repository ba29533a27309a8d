"""Of instruction data: how many tokens of each document of a shard are its source's, and so not learned."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from xelm_nemo.files import load_arrays, save_arrays


def write_sources(prefix: Path, num_source_tokens: NDArray[np.int32]) -> None:
    """Keep the counts of a shard's documents, int32 [documents], beside it."""
    save_arrays(_path(prefix), {"num_source_tokens": num_source_tokens})


def read_sources(prefix: Path) -> NDArray[np.int32] | None:
    """What `write_sources` wrote; None for a shard of documents that are learned whole."""
    return load_arrays(_path(prefix))["num_source_tokens"] if _path(prefix).is_file() else None


def _path(prefix: Path) -> Path:
    return prefix.with_name(f"{prefix.name}_sources.safetensors")
