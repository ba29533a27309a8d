"""A finished model's weights: under Hugging Face's names, whatever is written of them, or as they are."""

import dataclasses
import shutil
from pathlib import Path

from xelm_nemo import artifacts
from xelm_nemo.artifacts import Recipe
from xelm_nemo.checkpoint.architectures import ARCHITECTURES
from xelm_nemo.checkpoint.distributed import open_weights
from xelm_nemo.checkpoint.facts import WEIGHTS, ModelFacts, load_facts, write_facts
from xelm_nemo.checkpoint.filling import writing
from xelm_nemo.checkpoint.lazy import DTYPES, Batch, cast


def hf_batches(
    folder: Path, dtype: str | None = None, *, facts: ModelFacts | None = None
) -> tuple[ModelFacts, list[Batch]]:
    """What is known of a model, and its weights, read as they are made.

    Args:
        folder: the model folder, of any layout.
        dtype: "fp32", "bf16" or "fp16"; None keeps the model's, or what it was imported in.
        facts: what is known of the model; None reads it from the folder.

    Raises:
        ArtifactError: the folder is not a finished model.
        CheckpointError: its weights are damaged, or not those that its facts describe.
    """
    facts = facts or load_facts(folder)
    dtype = dtype or facts.origin_dtype
    weights = open_weights(folder / WEIGHTS)
    weight_map = ARCHITECTURES[facts.shape.architecture].weight_map(facts.shape, facts.vocab_size)
    batches = weight_map.to_hf(weights, source=str(folder))
    if dtype is None:
        return facts, batches
    return dataclasses.replace(facts, dtype=dtype), [cast(batch, DTYPES[dtype]) for batch in batches]


def copy_model(source: Path, output: Path, recipe: Recipe, *, tokenizer: str) -> None:
    """Write a finished model again, as the start of others.

    Args:
        source: the model folder; its bytes are those that it was written with.
        output: the model folder to write.
        recipe: what its manifest says that it was made from.
        tokenizer: folder or hub id of its tokenizer.

    Raises:
        ArtifactError: the source is no finished model, or has changed since.
    """
    artifacts.verify(source)
    facts = dataclasses.replace(load_facts(source), tokenizer=tokenizer, parent=str(source))
    with writing(output), artifacts.build(output, recipe) as part:
        copy_weights(source, part)
        write_facts(part, facts)


def copy_weights(folder: Path, output: Path) -> None:
    """Copy a model's `weights/` into another folder.

    Raises:
        OSError: the first file that cannot be copied; `shutil.copytree` would go on to the others.
    """
    (output / WEIGHTS).mkdir()
    for path in sorted((folder / WEIGHTS).iterdir()):
        shutil.copy2(path, output / WEIGHTS)
