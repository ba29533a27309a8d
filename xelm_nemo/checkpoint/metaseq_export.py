"""Models as metaseq and fairseq keep them: one consolidated `.pt` file."""

import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xelm_nemo.checkpoint.filling import fill, writing
from xelm_nemo.checkpoint.lazy import Batch
from xelm_nemo.checkpoint.metaseq_names import HEAD, TOKENS, from_hf, weightless
from xelm_nemo.checkpoint.metaseq_settings import metaseq_settings
from xelm_nemo.checkpoint.model_folder import hf_batches
from xelm_nemo.files import atomic_folder

FILE = "consolidated.pt"
_LOCAL_HEADER = struct.Struct("<26xHH")  # of an entry of a zip file; ends with the lengths of what follows it


def export_metaseq(model_folder: Path, output: Path, *, dtype: str | None = None) -> None:
    """Write a finished model as a folder with a consolidated checkpoint, at any layout it was saved in.

    Args:
        model_folder: the model.
        output: the folder to write; one that is there is replaced.
        dtype: "fp32", "bf16" or "fp16"; None keeps the model's.

    Raises:
        ArtifactError: the model is missing.
        CheckpointError: `dtype` cannot express its weights. No output is left behind.
    """
    facts, batches = hf_batches(model_folder, dtype)
    architecture = facts.shape.architecture
    named = [_renamed(batch, architecture) for batch in batches]
    named += [_constant(name, tensor) for name, tensor in weightless(architecture).items()]
    with writing(output), atomic_folder(output) as part:
        fill(_lay_out(part / FILE, named, metaseq_settings(facts.shape)), named)


def _renamed(batch: Batch, architecture: str) -> Batch:
    names = {name: from_hf(name, architecture) for name in batch.shapes}
    shapes = {names[name]: shape for name, shape in batch.shapes.items()}

    def make() -> dict[str, Tensor]:
        return {names[name]: tensor for name, tensor in batch.make().items()}

    return Batch(shapes, batch.dtype, make)


def _constant(name: str, tensor: Tensor) -> Batch:
    return Batch({name: tuple(tensor.shape)}, tensor.dtype, lambda: {name: tensor})


def _lay_out(
    path: Path, batches: Sequence[Batch], settings: Mapping[str, Any]
) -> dict[str, tuple[Path, int]]:
    """Write a file with room for the tensors, and say where each goes."""
    room = {  # memory that nothing touches, and so takes none
        name: torch.empty(shape, dtype=batch.dtype)
        for batch in batches
        for name, shape in batch.shapes.items()
    }
    with torch.serialization.skip_data(), path.open("wb") as file:
        torch.save({"model": room | {HEAD: room[TOKENS]}, "cfg": {"model": dict(settings)}}, file)
    places = _places(path)  # torch numbers what it stores in the order in which it comes across it
    return {name: (path, places[number]) for number, name in enumerate(room)}


def _places(path: Path) -> dict[int, int]:
    """The number of each tensor's storage in a file -> its first byte."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        places = {}
        for entry in archive.infolist():
            folder, _, number = entry.filename.rpartition("/")
            if folder.endswith("/data"):
                file.seek(entry.header_offset)
                behind = sum(_LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size)))
                places[int(number)] = entry.header_offset + _LOCAL_HEADER.size + behind
    return places
