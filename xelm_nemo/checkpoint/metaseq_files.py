"""Checkpoint files of metaseq and fairseq, whole or in tensor-parallel parts; nothing in them is run."""

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
_FSDP_FILE = re.compile(r"-shard\d+\.pt$")
_FSDP_TENSOR = "flat_param"
WANTED = "a consolidated .pt file of metaseq or fairseq, or a folder of *-model_part-<p>*.pt files"


@dataclass(frozen=True)
class MetaseqPart:
    """What one file holds. Tensors are mapped from the file, read where they are used."""

    path: Path
    settings: dict[str, Any]  # of the model, the "model" of fairseq's "cfg"
    tensors: dict[str, LazyTensor]


def part_files(source: Path) -> list[Path]:
    """The files of a checkpoint in the order of their parts; one file for a consolidated checkpoint.

    Raises:
        CheckpointError: there is no checkpoint, a part is missing or there twice, or files are FSDP shards.
    """
    files = sorted(source.glob("*.pt")) if source.is_dir() else [source]
    if not files or not all(path.is_file() for path in files):
        raise CheckpointError(f"seed_model.path={str(source)!r} is no checkpoint; give {WANTED}.")
    if shards := [path for path in files if _FSDP_FILE.search(path.name)]:
        raise _fsdp_shards(shards[0])
    numbered = [(int(found[1]), path) for path in files if (found := _PART.search(path.name))]
    if len(files) == 1 and not numbered:
        return files
    if not source.is_dir():
        raise CheckpointError(f"{source} is one part of a model; give its folder, with all the parts.")
    numbers = sorted(number for number, _ in numbered)
    if not numbered or numbers != list(range(len(numbered))):
        raise CheckpointError(
            f"{source} has the model parts {numbers}, which are not those of one checkpoint "
            "numbered from 0; give a folder with each part once."
        )
    return [path for _, path in sorted(numbered)]


def open_part(path: Path) -> MetaseqPart:
    """Open a checkpoint file.

    Raises:
        CheckpointError: it is damaged, holds anything but tensors and plain settings (which is not
            run), is an FSDP shard, or has a tensor that holds no floating-point numbers.
    """
    content = _load(path)
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, Mapping) or not model:
        raise CheckpointError(f"{path} has no weights under 'model'; give {WANTED}.")
    if any(_FSDP_TENSOR in str(name) for name in model):
        raise _fsdp_shards(path)
    tensors = {name: in_memory(path, name, tensor) for name, tensor in model.items()}
    settings = _named(_named(content.get("cfg")).get("model")) or _named(content.get("args"))
    if not settings:
        raise CheckpointError(
            f"{path} has no settings of the model, neither cfg['model'] nor args; give {WANTED}."
        )
    return MetaseqPart(path, settings, tensors)


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


def _fsdp_shards(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} is a shard of FSDP, whose tensors are flattened; join the shards first, with metaseq's "
        f"reshard_fsdp --unflatten-weights True, and give {WANTED}."
    )
