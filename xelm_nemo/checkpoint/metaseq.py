"""Checkpoints of metaseq and fairseq in: OPT and XGLM in the layout that OPT, X-ELM and c-BTM publish.

Settings and names become those of Hugging Face, whose weight maps do the rest.
"""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from xelm_nemo.artifacts import Recipe
from xelm_nemo.checkpoint.architectures import shape_of
from xelm_nemo.checkpoint.imports import import_weights
from xelm_nemo.checkpoint.metaseq_files import MetaseqFile, is_part, open_file, part_files
from xelm_nemo.checkpoint.metaseq_flat import published_layout
from xelm_nemo.checkpoint.metaseq_names import name_table, to_hf
from xelm_nemo.checkpoint.metaseq_settings import hf_config
from xelm_nemo.checkpoint.metaseq_shards import FLAT, Layout, Shard, joined, read_layout
from xelm_nemo.errors import CheckpointError
from xelm_nemo.model.config import ModelConfig

log = logging.getLogger(__name__)


def import_metaseq(source: Path, output: Path, recipe: Recipe, *, tokenizer: str) -> None:
    """Write a checkpoint of metaseq or fairseq as a model folder.

    Errors of single tensors call them by Hugging Face's names. float16 weights become float32, which
    holds them exactly.

    Args:
        source: a consolidated `.pt` file, or a folder of tensor-parallel parts, of FSDP shards, or of both.
        output: the model folder to write.
        recipe: what the model folder's manifest says that it was made from.
        tokenizer: the folder or hub id of its tokenizer, which the checkpoint does not have.

    Raises:
        CheckpointError: as `part_files` and `open_file`; shards that do not fit together; settings that our
            model cannot compute with; names the tensors that are missing, unknown, of another shape, or
            hold a weight that is no finite number. No output is left behind.
    """
    files = part_files(source)
    parts = [_open_part(paths, len(files)) for paths in files]
    config = hf_config(parts[0], len(parts))
    table = name_table(config["model_type"])
    tensors, dropped = to_hf([part.tensors for part in parts], table, source=str(source))
    if dropped:
        log.info("branch: %s holds no weights and is dropped from %s", ", ".join(dropped), source)
    import_weights(tensors, config, output, recipe, source=str(source), tokenizer=tokenizer)


def read_metaseq_shape(source: Path) -> ModelConfig:
    """The shape that the settings of a checkpoint describe.

    Raises:
        CheckpointError: there is no checkpoint that can be read, or all settings that do not fit.
    """
    files = part_files(source)
    part = _open_part(files[0], len(files))
    return shape_of(hf_config(part, len(files)), str(part.path))


def _open_part(paths: Sequence[Path], num_parts: int) -> MetaseqFile:
    """A tensor-parallel part, its shards joined."""
    files = [open_file(path) for path in paths]
    first = files[0]
    if len(files) == 1 and first.metadata is None and not _is_flat(first):
        return first
    shards = [Shard(file.path, file.tensors, _layout(file, len(files), num_parts)) for file in files]
    return dataclasses.replace(first, tensors=joined(shards))


def _layout(file: MetaseqFile, num_shards: int, num_parts: int) -> Layout:
    if file.metadata is not None:
        return read_layout(file.path, file.metadata)
    if num_shards > 1 or not is_part(file.path):
        raise CheckpointError(
            f"{file.path} has flattened tensors and no shard_metadata to say what they are made of; give the "
            "shards that training wrote."
        )
    return published_layout(file, num_parts)


def _is_flat(file: MetaseqFile) -> bool:
    return any(name.rpartition(".")[2].startswith(FLAT) for name in file.tensors)
