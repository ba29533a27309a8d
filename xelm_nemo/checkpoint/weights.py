"""The weights of a Hugging Face folder, as files: what can be wrong with them is found here."""

import dataclasses
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xelm_nemo.errors import CheckpointError
from xelm_nemo.files import read_json

INDEX = ".index.json"
SAFETENSORS, TORCH = "model.safetensors", "pytorch_model.bin"
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class HfWeights:
    """The tensors of a Hugging Face folder. They are mapped from their files, read where they are used."""

    tensors: dict[str, Tensor]
    files: dict[str, Path]  # where each tensor is


def read_weights(folder: Path) -> HfWeights:
    """Open the weights of a folder: safetensors, or torch files without any code in them, whole or in shards.

    Raises:
        CheckpointError: no weights, a missing or damaged file, an index that points out of the folder, a
            tensor that is in two files or holds no floating-point numbers.
    """
    tensors: dict[str, Tensor] = {}
    files: dict[str, Path] = {}
    for path in _weight_files(folder):
        for name, tensor in _open(path).items():
            if name in tensors:
                raise CheckpointError(f"{path}: {name} is also in {files[name].name}; remove one of the two.")
            check_dtype(path, name, tensor)
            tensors[name], files[name] = tensor, path
    return HfWeights(tensors, files)


def check_dtype(path: Path, name: str, tensor: Any) -> None:
    """See that what a file calls a weight is one.

    Raises:
        CheckpointError: it is no tensor, or holds no floating-point numbers.
    """
    if not isinstance(tensor, Tensor) or tensor.dtype not in _FLOATS:
        kind = getattr(tensor, "dtype", type(tensor).__name__)
        raise CheckpointError(f"{path}: {name} is {kind}; use weights in float32, bfloat16 or float16.")


def with_prefix(weights: HfWeights, prefix: str) -> HfWeights:
    """The same weights under full names: a folder saved without its head leaves out what all begin with."""
    if any(name.startswith(prefix) for name in weights.tensors):
        return weights
    return dataclasses.replace(
        weights,
        tensors={prefix + name: tensor for name, tensor in weights.tensors.items()},
        files={prefix + name: path for name, path in weights.files.items()},
    )


def check_finite(weights: HfWeights) -> None:
    """Look for weights that are no numbers.

    Raises:
        CheckpointError: names the file and the tensor of the first one.
    """
    for name, tensor in weights.tensors.items():
        if not tensor.isfinite().all():
            raise CheckpointError(
                f"{weights.files[name]}: {name} holds a number that is not finite; use a checkpoint without."
            )


def _weight_files(folder: Path) -> list[Path]:
    """The files of the first kind of weights that the folder has; safetensors are looked for first."""
    for name in (SAFETENSORS, TORCH):
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}{INDEX}"
        if index.is_file():
            return _indexed_files(index)
    raise CheckpointError(
        f"{folder} holds no weights; it needs {SAFETENSORS} or {TORCH}, whole or in shards."
    )


def _indexed_files(index: Path) -> list[Path]:
    content = read_json(index)
    entries = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(entries, dict) or not entries:
        raise CheckpointError(f"{index} names no weights (no 'weight_map'); fetch the checkpoint again.")
    names = sorted({str(name) for name in entries.values()})
    if outside := [name for name in names if Path(name).name != name]:
        raise CheckpointError(
            f"{index} names {outside[0]!r}, which is outside its folder; do not trust this one."
        )
    return [index.parent / name for name in names]


def _open(path: Path) -> dict[str, Any]:
    """Name -> tensor mapped from a file."""
    reader: Callable[[Path], dict[str, Any]] = (
        _open_safetensors if path.suffix == ".safetensors" else _open_torch
    )
    try:
        return reader(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing; fetch the checkpoint again.") from error
    # Whatever a loader makes of bytes that are not what it expects, one type of error each.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{path} cannot be read as weights ({reason}); fetch the checkpoint again."
        ) from error


def _open_safetensors(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(path)


def _open_torch(path: Path) -> dict[str, Any]:
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    if not isinstance(content, dict):
        raise ValueError(f"a {type(content).__name__}, not named tensors")
    return content
