"""The pickles of a distributed checkpoint, looked through before anything reads them.

torch keeps a checkpoint's index, `.metadata`, as a pickle, and a pickle may call anything that it names.
Here each is first gone through with a stand-in for every class that an index is made of; one that names
anything else, or does anything else with them, is refused and nothing of it is run.
"""

import pickle
import re
from pathlib import Path
from typing import Any

import torch

from xelm_nemo.errors import CheckpointError, first_line

INDEX, COMMON = ".metadata", "common.pt"
_FOREIGN = re.compile(r"(?:GLOBAL|class) ([\w.]+)")  # in torch's errors, and in ours
_DTYPES = tuple(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))
_UNPICKLER_SAYS = re.compile(r"WeightsUnpickler error:\s*(.+)")
# What torch and Megatron make an index of, by module.
_KNOWN = {
    "collections": {"OrderedDict"},
    "megatron.core.dist_checkpointing.strategies.torch": {"MCoreMetadata", "MCoreSavePlan"},
    "pathlib": {"PosixPath"},
    "torch": {"Size", *_DTYPES},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "torch.distributed.checkpoint.metadata": {
        *("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties", "_MEM_FORMAT_ENCODING"),
        *("BytesStorageMetadata", "ChunkStorageMetadata", "TensorStorageMetadata"),
    },
    "torch.distributed.checkpoint.planner": {
        *("BytesIOWriteData", "SavePlan", "TensorWriteData", "WriteItem", "WriteItemType"),
    },
    "torch.serialization": {"_get_layout"},
}


class _StandIn(dict[Any, Any]):
    """Takes what an index gives to any of its classes, and keeps none of it."""

    def __init__(self, *args: Any) -> None:
        """Take the arguments of a call."""

    def __setstate__(self, state: Any) -> None:
        """Take an object's attributes; a class has no such method to call, and is left as it is."""

    __hash__ = object.__hash__  # type: ignore[assignment]


class _Index(_StandIn):
    """Stands for the index itself."""


class _Inspector(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _KNOWN.get(module, ()):
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        return _Index if name in ("Metadata", "MCoreMetadata") else _StandIn


def check_pickles(folder: Path) -> None:
    """See that the pickles of a distributed checkpoint hold an index and plain values, and nothing to run.

    Raises:
        CheckpointError: names the file, and what it names; or it is missing or damaged.
    """
    for name, look_through in {INDEX: _look_through_index, COMMON: _look_through_common}.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing; give a whole distributed checkpoint.")
        try:
            look_through(path)
        # Whatever a reader makes of bytes that are not what it expects, one type of error each.
        except Exception as error:
            if foreign := foreign_name(error):
                raise CheckpointError(
                    f"{path} names {foreign}, which no distributed checkpoint is made of; nothing of it was "
                    "run. Do not trust this one."
                ) from error
            reason = reason_of(error)
            raise CheckpointError(
                f"{path} cannot be read ({reason}); give a whole distributed checkpoint."
            ) from error


def foreign_name(error: Exception) -> str | None:
    """What a pickle names that its reader does not admit, from the reader's error."""
    found = _FOREIGN.search(str(error))
    return found[1] if found else None


def reason_of(error: Exception) -> str:
    """What a reader of checkpoints says is wrong, in one line, without torch's advice to run the file."""
    found = _UNPICKLER_SAYS.search(str(error))
    return found[1] if found else first_line(error)


def _look_through_index(path: Path) -> None:
    with path.open("rb") as file:
        if not isinstance(_Inspector(file).load(), _Index):
            raise ValueError("it holds no index")


def _look_through_common(path: Path) -> None:
    torch.load(path, map_location="cpu", weights_only=True)
