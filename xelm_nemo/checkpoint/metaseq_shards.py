"""Tensors that fairscale's FSDP laid end to end and cut over the processes of training, cut out again.

Each file of `use_sharded_state` holds its share of every flat tensor, filled up to the length of the
others', and `shard_metadata`: for each FSDP module the flat tensors with the names, shapes and sizes of what
they were made of, and how much of this share is filling. Tensors of the model are views of the files, or
joined from the few that they are cut over, when they are read. This is what fairscale's
`local_metadata_dict` writes and its `consolidate_shard_weights` reads.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xelm_nemo.checkpoint.lazy import LazyTensor
from xelm_nemo.checkpoint.settings import is_size
from xelm_nemo.errors import CheckpointError

FLAT = "flat_param"


@dataclass(frozen=True)
class Flat:
    """A flat tensor: what it is called in a file, and what it was made of, in this order."""

    name: str
    tensors: tuple[tuple[str, tuple[int, ...]], ...]  # (name, shape)
    padding: int = 0  # numbers at the end of a file's share that belong to no tensor


@dataclass(frozen=True)
class Layout:
    """What the flat tensors of a file were made of."""

    flats: tuple[Flat, ...]
    shared: tuple[tuple[str, str], ...] = ()  # (tensor, another name of it)

    def unpadded(self) -> "Layout":
        """What is the same in all shards of a model."""
        return dataclasses.replace(
            self, flats=tuple(dataclasses.replace(flat, padding=0) for flat in self.flats)
        )


@dataclass(frozen=True)
class Shard:
    """A file's tensors, and what its flat ones were made of."""

    path: Path
    tensors: Mapping[str, LazyTensor]
    layout: Layout


def read_layout(path: Path, metadata: Any) -> Layout:
    """What a file's `shard_metadata` says.

    Raises:
        CheckpointError: it does not say it as FSDP does, or names, shapes and sizes contradict each other.
    """
    try:
        modules = metadata["param_metadata"]
        shared = [pair for module in modules for pair in module["shared_param_info"]]
        flats = [flat for module in modules for flat in _flats(module)]
        return Layout(tuple(flats), tuple((str(tensor), str(name)) for tensor, name in shared))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"no {error.args[0]!r}" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(
            f"{path}: its shard_metadata is not what FSDP writes ({reason}); fetch the checkpoint again."
        ) from error


def _flats(module: Mapping[str, Any]) -> Iterator[Flat]:
    root = f"{module['fsdp_path']}." if module["fsdp_path"] else ""
    for name, entry in module["params"].items():
        flat = f"{root}{name}"
        names, shapes, sizes, padding = (entry[key] for key in ("names", "shapes", "numels", "padding"))
        if not len(names) == len(shapes) == len(sizes):
            raise ValueError(f"{flat} has {len(names)} names, {len(shapes)} shapes and {len(sizes)} sizes")
        if padding != 0 and not is_size(padding):
            raise ValueError(f"{flat} has a padding of {padding!r}")
        tensors = tuple((f"{root}{own}", tuple(shape)) for own, shape in zip(names, shapes, strict=True))
        for (own, shape), size in zip(tensors, sizes, strict=True):
            if not all(is_size(length) for length in shape) or math.prod(shape) != size:
                raise ValueError(f"{own} has {size!r} numbers in shape {list(shape)}")
        yield Flat(flat, tensors, padding)


def joined(shards: Sequence[Shard]) -> dict[str, LazyTensor]:
    """The tensors of a model, or of a tensor-parallel part of one, from all its shards in their order.

    Tensors that are not flat are buffers, which every shard has; they are the first's, as fairscale's are.

    Raises:
        CheckpointError: names the file that does not fit the first, or the flat tensor whose numbers are more
            or fewer than those of the tensors in it; or a tensor is there twice.
    """
    first = shards[0]
    for shard in shards[1:]:
        if shard.layout.unpadded() != first.layout.unpadded():
            raise CheckpointError(
                f"{shard.path}: its shard_metadata describes other tensors than that of {first.path.name}; "
                "give the shards of one checkpoint."
            )
    flat_names = {flat.name for flat in first.layout.flats}
    tensors = {name: tensor for name, tensor in first.tensors.items() if name not in flat_names}
    for number, flat in enumerate(first.layout.flats):
        paddings = [shard.layout.flats[number].padding for shard in shards]
        _add(tensors, _cut_out(flat, _shares(flat.name, shards, paddings)), first.path)
    for source, name in first.layout.shared:
        if source not in tensors:
            raise CheckpointError(f"{first.path}: {name} is {source!r}, which is not there; fetch it again.")
        _add(tensors, {name: tensors[source]}, first.path)
    return tensors


def _add(tensors: dict[str, LazyTensor], more: Mapping[str, LazyTensor], path: Path) -> None:
    if there := tensors.keys() & more.keys():
        raise CheckpointError(f"{path}: {min(there)} is there twice; remove one of the two.")
    tensors |= more


@dataclass(frozen=True)
class _Share:
    """A file's share of a flat tensor, without its filling."""

    tensor: LazyTensor
    start: int  # of its first number, in the flat tensor
    stop: int

    def read(self, start: int, stop: int) -> Tensor:
        """The numbers from `start` to `stop` of the flat tensor that are in this share."""
        own = slice(max(start, self.start) - self.start, min(stop, self.stop) - self.start)
        return self.tensor.read().reshape(-1)[own]


def _shares(name: str, shards: Sequence[Shard], paddings: Sequence[int]) -> list[_Share]:
    shares: list[_Share] = []
    for shard, padding in zip(shards, paddings, strict=True):
        if name not in shard.tensors:
            raise CheckpointError(f"{shard.path} has no {name}, as its shard_metadata says; fetch it again.")
        tensor, start = shard.tensors[name], shares[-1].stop if shares else 0
        size = math.prod(tensor.shape) - padding
        if size < 0:
            raise CheckpointError(
                f"{shard.path}: {name} has a padding of {padding}, more than its numbers; fetch it again."
            )
        if shares and tensor.dtype != shares[0].tensor.dtype:
            raise CheckpointError(
                f"{shard.path}: {name} is {tensor.dtype}, and in the other shards {shares[0].tensor.dtype}; "
                "give the shards of one checkpoint."
            )
        shares.append(_Share(tensor, start, start + size))
    return shares


def _cut_out(flat: Flat, shares: Sequence[_Share]) -> dict[str, LazyTensor]:
    """The tensors that a flat one was made of."""
    found, wanted = shares[-1].stop, sum(math.prod(shape) for _, shape in flat.tensors)
    if found != wanted:
        raise CheckpointError(
            f"{shares[0].tensor.place}: {flat.name} has {found} numbers in {len(shares)} shards, and the "
            f"tensors in it {wanted}; give every shard of one checkpoint."
        )
    tensors: dict[str, LazyTensor] = {}
    start = 0
    for name, shape in flat.tensors:
        stop = start + math.prod(shape)
        _add(tensors, {name: _tensor(shape, shares, start, stop)}, Path(shares[0].tensor.place))
        start = stop
    return tensors


def _tensor(shape: tuple[int, ...], shares: Sequence[_Share], start: int, stop: int) -> LazyTensor:
    own = [share for share in shares if share.start < stop and start < share.stop]

    def read() -> Tensor:
        pieces = [share.read(start, stop) for share in own]
        return (pieces[0] if len(pieces) == 1 else torch.cat(pieces)).view(shape)

    return LazyTensor(shape, own[0].tensor.dtype, read, own[0].tensor.place)
