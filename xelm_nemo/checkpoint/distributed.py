"""Distributed checkpoints read tensor by tensor, whatever layout they were saved at.

Megatron saves the layers' tensors of one kind as one tensor, [layers, ...], divided into chunks as the
ranks held them; NeMo does the same, and models whose layers differ keep one tensor a layer.
"""

import math
import re
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from xelm_nemo.checkpoint.lazy import LazyTensor
from xelm_nemo.checkpoint.pickles import INDEX, check_pickles, reason_of
from xelm_nemo.errors import CheckpointError
from xelm_nemo.model.config import MOST_LAYERS

KEY_PREFIX = "module."  # NeMo's, of every weight; an optimizer's state has another
LAYERS = "decoder.layers."
_OF_ONE_LAYER = re.compile(re.escape(LAYERS) + r"\d+\.")
_NO_WEIGHT = "_extra_state"  # FP8 scales


def open_weights(folder: Path) -> dict[str, LazyTensor]:
    """The weights of a distributed checkpoint under Megatron's names, each layer's by itself.

    Raises:
        CheckpointError: the checkpoint is missing or damaged, its index names a file outside the folder,
            or one of its pickles holds anything to run.
    """
    try:
        return _weights(*_open(folder))
    except CheckpointError:
        raise
    # An index may say anything in place of what torch expects, one type of error each.
    except Exception as error:
        raise CheckpointError(
            f"{folder / INDEX} cannot be read ({reason_of(error)}); give a whole distributed checkpoint."
        ) from error


def _weights(reader: FileSystemReader, index: Metadata) -> dict[str, LazyTensor]:
    weights: dict[str, LazyTensor] = {}
    for key, entry in index.state_dict_metadata.items():
        name = key.removeprefix(KEY_PREFIX)
        if name == key or _NO_WEIGHT in name or not isinstance(entry, TensorStorageMetadata):
            continue
        if name.startswith(LAYERS) and not _OF_ONE_LAYER.match(name):
            kind = name.removeprefix(LAYERS)
            if not entry.size or entry.size[0] > MOST_LAYERS:
                raise CheckpointError(
                    f"{reader.path}: {key} has shape {list(entry.size)}, which is none of layers; "
                    "give a whole distributed checkpoint."
                )
            for layer in range(entry.size[0]):
                weights[f"{LAYERS}{layer}.{kind}"] = _lazy(reader, key, entry, layer=layer)
        else:
            weights[name] = _lazy(reader, key, entry)
    return weights


def _open(folder: Path) -> tuple[FileSystemReader, Metadata]:
    check_pickles(folder)
    reader = FileSystemReader(folder)
    index = reader.read_metadata()
    places = index.storage_data.values() if isinstance(index.storage_data, dict) else ()
    for path in sorted({str(place.relative_path) for place in places}):
        if Path(path).name != path:
            raise CheckpointError(
                f"{folder / INDEX} names {path!r}, which is outside its folder; do not trust this one."
            )
        if not (folder / path).is_file():
            raise CheckpointError(f"{folder / path} is missing; give a whole distributed checkpoint.")
    reader.set_up_storage_reader(index, is_coordinator=True)
    return reader, index


def _lazy(
    reader: FileSystemReader, key: str, entry: TensorStorageMetadata, *, layer: int | None = None
) -> LazyTensor:
    """A stored tensor, or one layer of it."""
    dtype, sizes = entry.properties.dtype, list(entry.size)
    offsets = [0] * len(sizes)
    if layer is not None:
        sizes[0], offsets[0] = 1, layer
    box = ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
    shape = tuple(sizes if layer is None else sizes[1:])

    def read() -> Tensor:
        try:
            items = create_read_items_for_chunk_list(key, entry, [box])
            if sum(math.prod(item.lengths) for item in items) != math.prod(sizes):
                raise CheckpointError(
                    f"{reader.path}: {key} is not whole; give a whole distributed checkpoint."
                )
            target = torch.empty(sizes, dtype=dtype)
            reader.read_data(LoadPlan(items), _Filler(target)).wait()
        except CheckpointError:
            raise
        # Whatever torch makes of bytes that are not what it expects, one type of error each.
        except Exception as error:
            reason = reason_of(error)
            raise CheckpointError(
                f"{reader.path}: {key} cannot be read ({reason}); give a whole distributed checkpoint."
            ) from error
        return target.view(shape)

    return LazyTensor(shape, dtype, read, str(reader.path))


class _Filler(DefaultLoadPlanner):
    """Puts what is read of one tensor where it belongs."""

    def __init__(self, target: Tensor) -> None:
        super().__init__()
        self._target = target

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        """The tensor to fill."""
        return self._target
