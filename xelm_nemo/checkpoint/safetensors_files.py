"""safetensors files whose tensors are made one by one, while the files are written.

The format (https://github.com/huggingface/safetensors#format): the header's length in 8 bytes, little
endian; the header, JSON with each tensor's dtype, shape and place; then the tensors.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from xelm_nemo.checkpoint.filling import fill
from xelm_nemo.checkpoint.lazy import Batch
from xelm_nemo.files import write_json

SAFETENSORS, INDEX = "model.safetensors", ".index.json"
CODES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_LENGTH_BYTES = _ALIGNMENT = 8


class _Entry(NamedTuple):
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_safetensors(folder: Path, batches: Sequence[Batch], *, max_shard_bytes: int) -> None:
    """Write tensors in their order into `model.safetensors`, or into several files and their index.

    The bytes are those that safetensors' own writer gives.

    Args:
        folder: where the files go.
        batches: the tensors.
        max_shard_bytes: of the tensors in a file; a larger tensor has a file of its own.

    Raises:
        CheckpointError: a tensor cannot be made.
        OSError: the disk is full.
    """
    entries = {name: _Entry(shape, batch.dtype) for batch in batches for name, shape in batch.shapes.items()}
    shards = _divide(entries, max_shard_bytes)
    places: dict[str, tuple[Path, int]] = {}
    for name, shard in shards.items():
        places |= _lay_out(folder / name, shard)
    if len(shards) > 1:
        total = sum(entry.num_bytes for entry in entries.values())
        weight_map = {name: path.name for name, (path, _) in sorted(places.items())}
        write_json(
            folder / (SAFETENSORS + INDEX), {"metadata": {"total_size": total}, "weight_map": weight_map}
        )
    fill(places, batches)


def _divide(entries: Mapping[str, _Entry], max_bytes: int) -> dict[str, dict[str, _Entry]]:
    """The tensors of each file by the file's name."""
    shards: list[dict[str, _Entry]] = [{}]
    room = max_bytes
    for name, entry in entries.items():
        if shards[-1] and entry.num_bytes > room:
            shards.append({})
            room = max_bytes
        shards[-1][name] = entry
        room -= entry.num_bytes
    if len(shards) == 1:
        return {SAFETENSORS: shards[0]}
    return {
        f"model-{number:05d}-of-{len(shards):05d}.safetensors": shard
        for number, shard in enumerate(shards, start=1)
    }


def _lay_out(path: Path, entries: Mapping[str, _Entry]) -> dict[str, tuple[Path, int]]:
    """Write a file's header, and say where its tensors go: the widest dtypes first, then by name."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    starts: dict[str, int] = {}
    end = 0
    for name in sorted(entries, key=lambda name: (-entries[name].dtype.itemsize, name)):
        entry, starts[name] = entries[name], end
        end += entry.num_bytes
        place = [starts[name], end]
        header[name] = {"dtype": CODES[entry.dtype], "shape": entry.shape, "data_offsets": place}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    path.write_bytes(len(text).to_bytes(_LENGTH_BYTES, "little") + text)
    first = path.stat().st_size
    os.truncate(path, first + end)
    return {name: (path, first + start) for name, start in starts.items()}
