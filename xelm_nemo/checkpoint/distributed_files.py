"""Distributed checkpoints written tensor by tensor, as Megatron writes a model of one rank."""

import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.strategies.torch import MCoreMetadata
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from xelm_nemo import device
from xelm_nemo.checkpoint.distributed import KEY_PREFIX, LAYERS
from xelm_nemo.checkpoint.lazy import MAX_THREADS, LazyTensor, owning
from xelm_nemo.checkpoint.pickles import COMMON
from xelm_nemo.checkpoint.writer import first_error, write_buckets

_FILES = 8  # written at a time, where there are as many cores


@dataclass(frozen=True)
class _Piece:
    """One tensor, and where it belongs in the tensor that is stored."""

    key: str
    size: tuple[int, ...]  # of the tensor that is stored
    chunk: ChunkStorageMetadata
    tensor: LazyTensor

    @property
    def num_bytes(self) -> int:
        return math.prod(self.tensor.shape) * self.tensor.dtype.itemsize

    @property
    def properties(self) -> TensorProperties:
        return TensorProperties(dtype=self.tensor.dtype)

    def written(self) -> tuple[WriteItem, Tensor]:
        """What torch's writer takes; the tensor is read here."""
        data = TensorWriteData(self.chunk, self.properties, torch.Size(self.size))
        index = MetadataIndex(self.key, self.chunk.offsets)
        item = WriteItem(index, WriteItemType.SHARD, tensor_data=data)
        return item, owning(self.tensor.read().view(self.chunk.sizes))


def write_weights(folder: Path, tensors: Mapping[str, LazyTensor]) -> None:
    """Write tensors as the distributed checkpoint of a model.

    The bytes depend on the tensors alone. No more tensors are in memory at a time than files are written.

    Args:
        folder: an empty folder.
        tensors: under Megatron's names, each layer's by itself; layers count from 0 without gaps.

    Raises:
        CheckpointError: a tensor cannot be read.
        OSError: the disk is full.
    """
    pieces = _pieces(tensors)
    writer = _Writer(folder)
    buckets: list[Any] = [
        (str(folder / name), name, ([], (piece.written() for piece in part)))
        for name, part in _divide(pieces).items()
    ]
    outcomes = write_buckets([writer.transforms], buckets, threads=min(device.cores(), MAX_THREADS))
    if error := first_error(outcomes):
        raise error
    writer.finish(_index(pieces), outcomes)
    torch.save({}, folder / COMMON)
    save_config(CheckpointingConfig("torch_dist"), str(folder))


class _Writer(FileSystemWriter):
    """Leaves place and time out of the index, so that the same weights are the same bytes."""

    def storage_meta(self) -> None:
        """Nothing."""


def _pieces(tensors: Mapping[str, LazyTensor]) -> list[_Piece]:
    split = {name: _in_layers(name) for name in tensors}
    layers = {layer for _, layer in split.values() if layer is not None}
    kinds = {key for key, layer in split.values() if layer is not None}
    if len(kinds) * len(layers) > sum(layer is not None for _, layer in split.values()):
        split = {name: (KEY_PREFIX + name, None) for name in tensors}  # layers differ: a tensor for each
    return [_piece(*split[name], len(layers), tensor) for name, tensor in tensors.items()]


def _in_layers(name: str) -> tuple[str, int | None]:
    """What alike layers' tensors are stored in, by its name, and which layer of it this one is."""
    if not name.startswith(LAYERS):
        return KEY_PREFIX + name, None
    layer, kind = name.removeprefix(LAYERS).split(".", 1)
    return KEY_PREFIX + LAYERS + kind, int(layer)


def _piece(key: str, layer: int | None, num_layers: int, tensor: LazyTensor) -> _Piece:
    shape, zeros = tensor.shape, [0] * len(tensor.shape)
    if layer is None:
        return _Piece(key, shape, ChunkStorageMetadata(torch.Size(zeros), torch.Size(shape)), tensor)
    chunk = ChunkStorageMetadata(torch.Size([layer, *zeros]), torch.Size([1, *shape]))
    return _Piece(key, (num_layers, *shape), chunk, tensor)


def _divide(pieces: list[_Piece]) -> dict[str, list[_Piece]]:
    """Pieces by the name of their file, the files nearly of one size."""
    parts: list[list[_Piece]] = [[] for _ in range(_FILES)]
    smallest = [(0, number) for number in range(_FILES)]
    for piece in sorted(pieces, key=lambda piece: -piece.num_bytes):
        size, number = heapq.heappop(smallest)
        parts[number].append(piece)
        heapq.heappush(smallest, (size + piece.num_bytes, number))
    return {f"__0_{number}.distcp": part for number, part in enumerate(parts) if part}


def _index(pieces: list[_Piece]) -> Any:
    tensors: dict[str, TensorStorageMetadata] = {}
    for piece in pieces:
        entry = TensorStorageMetadata(piece.properties, torch.Size(piece.size), [])
        tensors.setdefault(piece.key, entry).chunks.append(piece.chunk)
    # What Megatron notes of each tensor of stacked layers: nothing, unless an optimizer flattened it.
    notes: dict[str, dict[str, Any]] = {key: {} for key in tensors if LAYERS in key}
    return MCoreMetadata(tensors, mcore_data=notes)
