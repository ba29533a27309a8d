"""Checkpoints of metaseq and fairseq in: OPT and XGLM in the layout that OPT, X-ELM and c-BTM publish.

Settings and names become those of Hugging Face, whose weight maps do the rest.
"""

import logging
from pathlib import Path

from xelm_nemo.artifacts import Recipe
from xelm_nemo.checkpoint.imports import import_weights
from xelm_nemo.checkpoint.metaseq_files import open_part, part_files
from xelm_nemo.checkpoint.metaseq_names import name_table, to_hf
from xelm_nemo.checkpoint.metaseq_settings import hf_config

log = logging.getLogger(__name__)


def import_metaseq(source: Path, output: Path, recipe: Recipe, *, tokenizer: str) -> None:
    """Write a checkpoint of metaseq or fairseq as a model folder.

    Errors of single tensors call them by Hugging Face's names. float16 weights become float32, which
    holds them exactly.

    Args:
        source: a consolidated `.pt` file, or a folder of tensor-parallel parts.
        output: the model folder to write.
        recipe: what the model folder's manifest says that it was made from.
        tokenizer: the folder or hub id of its tokenizer, which the checkpoint does not have.

    Raises:
        CheckpointError: as `part_files` and `open_part`; settings that our model cannot compute with;
            names the tensors that are missing, unknown, of another shape, or hold a weight that is no
            finite number. No output is left behind.
    """
    parts = [open_part(path) for path in part_files(source)]
    config = hf_config(parts[0], len(parts))
    table = name_table(config["model_type"])
    tensors, dropped = to_hf([part.tensors for part in parts], table, source=str(source))
    if dropped:
        log.info("branch: %s holds no weights and is dropped from %s", ", ".join(dropped), source)
    import_weights(tensors, config, output, recipe, source=str(source), tokenizer=tokenizer)
