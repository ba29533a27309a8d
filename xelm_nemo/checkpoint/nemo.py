"""NeMo 2's checkpoint folders in, without NeMo: `weights/` is Megatron's, under the names that ours have."""

from pathlib import Path

import torch

from xelm_nemo.artifacts import Recipe
from xelm_nemo.checkpoint.architectures import ARCHITECTURES
from xelm_nemo.checkpoint.distributed import open_weights
from xelm_nemo.checkpoint.facts import WEIGHTS, ModelFacts
from xelm_nemo.checkpoint.imports import import_weights
from xelm_nemo.checkpoint.lazy import tensors_of
from xelm_nemo.checkpoint.model_folder import hf_batches
from xelm_nemo.checkpoint.nemo_context import read_context
from xelm_nemo.corpus.tokenizer import load_tokenizer


def import_nemo(source: Path, output: Path, recipe: Recipe, *, tokenizer: str | None = None) -> None:
    """Write a NeMo checkpoint of an XGLM or OPT as a model folder, at whatever layout NeMo saved it.

    Args:
        source: a folder with `weights/` and `context/`. What a training run saved beside the weights, such
            as the optimizer's state, is left there.
        output: the model folder to write.
        recipe: what the model folder's manifest says that it was made from.
        tokenizer: the folder or hub id of its tokenizer; None: the one in the context.

    Raises:
        CheckpointError: as `read_nemo_facts`; names the tensors that are missing, unknown, of another shape,
            or hold a weight that is no finite number. No output is left behind.
    """
    facts, batches = hf_batches(source, facts=read_nemo_facts(source, tokenizer=tokenizer))
    config = ARCHITECTURES[facts.shape.architecture].write_config(facts)
    weights = {name: tensor for batch in batches for name, tensor in tensors_of(batch, str(source)).items()}
    import_weights(weights, config, output, recipe, source=str(source), tokenizer=facts.tokenizer)


def read_nemo_facts(folder: Path, *, tokenizer: str | None = None) -> ModelFacts:
    """What a NeMo checkpoint says of its model.

    Args:
        folder: the checkpoint.
        tokenizer: the folder or hub id of its tokenizer; None: the one in the context.

    Raises:
        CheckpointError: it is no NeMo checkpoint, one of another architecture, or damaged.
        ArtifactError: the vocabulary is the tokenizer's, and there is none.
    """
    context = read_context(folder)
    words = tokenizer or context.tokenizer or str(folder)
    vocab_size = context.vocab_size or len(load_tokenizer(words))
    dtypes = {weight.dtype for weight in open_weights(folder / WEIGHTS).values()}
    dtype = "bf16" if dtypes == {torch.bfloat16} else "fp32"
    return ModelFacts(context.shape, vocab_size, dtype, words, parent=str(folder), name=folder.name)
