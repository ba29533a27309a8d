"""The weights of a Hugging Face folder, as files: what can be wrong with them is found here."""

import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xelm_nemo.checkpoint.lazy import DTYPES, LazyTensor
from xelm_nemo.checkpoint.pickles import foreign_name, reason_of
from xelm_nemo.checkpoint.safetensors_files import CODES, INDEX, SAFETENSORS
from xelm_nemo.errors import CheckpointError
from xelm_nemo.files import read_json

TORCH = "pytorch_model.bin"
_DTYPE_OF = {code: dtype for dtype, code in CODES.items()}


def read_weights(folder: Path) -> dict[str, LazyTensor]:
    """Open the weights of a folder: safetensors, or torch files without any code in them, whole or in shards.

    Raises:
        CheckpointError: no weights, a missing or damaged file, an index that points out of the folder, a
            tensor that is in two files or holds no floating-point numbers.
    """
    tensors: dict[str, LazyTensor] = {}
    for path in _weight_files(folder):
        for name, tensor in _open(path).items():
            if name in tensors:
                other = Path(tensors[name].place).name
                raise CheckpointError(f"{path}: {name} is also in {other}; remove one of the two.")
            tensors[name] = tensor
    return tensors


def in_memory(path: Path, name: Any, tensor: Any) -> LazyTensor:
    """What a file calls a weight, once it has been read or mapped.

    Raises:
        CheckpointError: its name is no text, or it is no tensor of floating-point numbers, each with a place.
    """
    if not isinstance(name, str):
        raise CheckpointError(f"{path}: {name!r} is no name of a tensor; fetch the checkpoint again.")
    if not isinstance(tensor, Tensor) or tensor.dtype not in DTYPES.values():
        kind = getattr(tensor, "dtype", type(tensor).__name__)
        raise CheckpointError(f"{path}: {name} is {kind}; use weights in float32, bfloat16 or float16.")
    if tensor.is_meta or tensor.layout != torch.strided:
        kind = "meta, without numbers" if tensor.is_meta else tensor.layout
        raise CheckpointError(f"{path}: {name} is {kind}; save it as a plain tensor.")
    return LazyTensor(tuple(tensor.shape), tensor.dtype, lambda: tensor, str(path))


def with_prefix(weights: Mapping[str, LazyTensor], prefix: str) -> dict[str, LazyTensor]:
    """The same weights under full names: a folder saved without its head leaves out what all begin with."""
    if any(name.startswith(prefix) for name in weights):
        return dict(weights)
    return {prefix + name: tensor for name, tensor in weights.items()}


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


def _open(path: Path) -> dict[str, LazyTensor]:
    """Name -> tensor of a file."""
    opener: Callable[[Path], Iterator[tuple[str, LazyTensor]]] = (
        _open_safetensors if path.suffix == ".safetensors" else _open_torch
    )
    try:
        return dict(opener(path))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing; fetch the checkpoint again.") from error
    except CheckpointError:
        raise
    # Whatever a loader makes of bytes that are not what it expects, one type of error each.
    except Exception as error:
        if foreign := foreign_name(error):
            raise CheckpointError(
                f"{path} names {foreign}, which no weights are made of; nothing of it was run. Do not trust "
                "this one."
            ) from error
        reason = reason_of(error)
        raise CheckpointError(
            f"{path} cannot be read as weights ({reason}); fetch the checkpoint again."
        ) from error


def _open_safetensors(path: Path) -> Iterator[tuple[str, LazyTensor]]:
    """Each tensor opens the file for itself: what is mapped of it is let go with the tensor."""
    from safetensors import safe_open

    def reader(name: str) -> Callable[[], Tensor]:
        def read() -> Tensor:
            with safe_open(path, framework="pt") as file:
                tensor: Tensor = file.get_tensor(name)
            return tensor

        return read

    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  (it is no dictionary)
            entry = file.get_slice(name)
            dtype = _DTYPE_OF.get(entry.get_dtype())
            if dtype is None:
                yield name, in_memory(path, name, file.get_tensor(name))
            else:
                yield name, LazyTensor(tuple(entry.get_shape()), dtype, reader(name), str(path))


def _open_torch(path: Path) -> Iterator[tuple[str, LazyTensor]]:
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    if not isinstance(content, dict):
        raise ValueError(f"a {type(content).__name__}, not named tensors")
    for name, tensor in content.items():
        yield name, in_memory(path, name, tensor)
