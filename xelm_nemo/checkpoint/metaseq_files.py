"""Checkpoint files of metaseq and fairseq, whole, in parts or in shards of these; nothing in them is run."""

import re
import zipfile
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from xelm_nemo.checkpoint.lazy import LazyTensor
from xelm_nemo.checkpoint.pickles import foreign_name, reason_of
from xelm_nemo.checkpoint.weights import in_memory
from xelm_nemo.errors import CheckpointError

_PART = re.compile(r"-model_part-(\d+)(?=[-.])")
_SHARD = re.compile(r"-shard(\d+)(?=\.pt$)")
WANTED = "a consolidated .pt file of metaseq or fairseq, or a folder of *-model_part-<p>-shard<s>.pt files"


@dataclass(frozen=True)
class MetaseqFile:
    """What one file holds. Tensors are mapped from the file, read where they are used."""

    path: Path
    settings: dict[str, Any]  # of the model, the "model" of fairseq's "cfg"
    tensors: dict[str, LazyTensor]
    metadata: Any  # what FSDP says of its shard; None where it says nothing


def part_files(source: Path) -> list[list[Path]]:
    """The files of a checkpoint by tensor-parallel part and by FSDP shard, in the order of their numbers.

    A consolidated checkpoint is one part of one shard.

    Raises:
        CheckpointError: there is no checkpoint, or a part or a shard is missing or there twice.
    """
    files = sorted(source.glob("*.pt")) if source.is_dir() else [source]
    if not files or not all(path.is_file() for path in files):
        raise CheckpointError(f"seed_model.path={str(source)!r} is no checkpoint; give {WANTED}.")
    numbered = [path for path in files if is_part(path) or _SHARD.search(path.name)]
    if len(files) == 1 and not numbered:
        return [files]
    if not source.is_dir():
        raise CheckpointError(f"{source} is one part of a model; give its folder, with all the parts.")
    parts: dict[int, list[Path]] = {}
    for path in numbered:
        parts.setdefault(_number(_PART, path), []).append(path)
    if not numbered or sorted(parts) != list(range(len(parts))):
        raise CheckpointError(
            f"{source} has the model parts {sorted(parts)}, which are not those of one checkpoint "
            "numbered from 0; give a folder with each part once."
        )
    num_shards = max(len(paths) for paths in parts.values())
    return [_in_order(source, number, parts[number], num_shards) for number in sorted(parts)]


def _in_order(source: Path, part: int, paths: list[Path], num_shards: int) -> list[Path]:
    """The shards of a part, which are `num_shards`."""
    shards: dict[int, Path] = {}
    for path in paths:
        number = _number(_SHARD, path)
        if number in shards:
            raise CheckpointError(
                f"{source}: {shards[number].name} and {path.name} are both part {part}, shard {number}; "
                "give a folder with the files of one checkpoint."
            )
        shards[number] = path
    if missing := [number for number in range(num_shards) if number not in shards]:
        raise CheckpointError(
            f"{source} has no shard {missing[0]} of model part {part}; give all shards of all parts."
        )
    return [shards[number] for number in range(num_shards)]


def is_part(path: Path) -> bool:
    """Whether a file is of a tensor-parallel part, by its name."""
    return _PART.search(path.name) is not None


def _number(pattern: re.Pattern[str], path: Path) -> int:
    found = pattern.search(path.name)
    return int(found[1]) if found else 0


def open_file(path: Path) -> MetaseqFile:
    """Open a checkpoint file.

    Raises:
        CheckpointError: it is damaged, holds anything but tensors and plain settings (which is not
            run), or has a tensor that holds no floating-point numbers.
    """
    content = _load(path)
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, Mapping) or not model:
        raise CheckpointError(f"{path} has no weights under 'model'; give {WANTED}.")
    tensors = {name: in_memory(path, name, tensor) for name, tensor in model.items()}
    settings = _named(_named(content.get("cfg")).get("model")) or _named(content.get("args"))
    if not settings:
        raise CheckpointError(
            f"{path} has no settings of the model, neither cfg['model'] nor args; give {WANTED}."
        )
    return MetaseqFile(path, settings, tensors, content.get("shard_metadata") or None)


def _load(path: Path) -> Any:
    """What a file holds, made of tensors, plain values and namespaces alone."""
    try:
        with torch.serialization.safe_globals([Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    # Whatever torch makes of bytes that are not what it expects, one type of error each.
    except Exception as error:
        if foreign := foreign_name(error):
            raise CheckpointError(
                f"{path} names {foreign}, and only tensors, plain values and argparse.Namespace are read; "
                "save it again without, as {'model': state_dict, 'cfg': {'model': dict}}."
            ) from error
        reason = reason_of(error)
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint ({reason}); fetch the checkpoint again."
        ) from error


def _named(values: Any) -> dict[str, Any]:
    """A dictionary's or a namespace's values by name; empty for anything else."""
    if isinstance(values, Namespace):
        return vars(values)
    return dict(values) if isinstance(values, Mapping) else {}
