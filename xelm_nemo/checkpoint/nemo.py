"""NeMo 2's checkpoint folders in, without NeMo: `weights/` is Megatron's, under the names that ours have."""

import logging
from pathlib import Path

import torch

from xelm_nemo.artifacts import Recipe
from xelm_nemo.checkpoint.architectures import ARCHITECTURES
from xelm_nemo.checkpoint.distributed import open_weights
from xelm_nemo.checkpoint.facts import WEIGHTS, ModelFacts
from xelm_nemo.checkpoint.imports import import_weights
from xelm_nemo.checkpoint.layers import EMBEDDING
from xelm_nemo.checkpoint.lazy import LazyTensor, tensors_of
from xelm_nemo.checkpoint.model_folder import hf_batches
from xelm_nemo.checkpoint.nemo_context import NemoContext, read_context
from xelm_nemo.corpus.tokenizer import load_tokenizer
from xelm_nemo.errors import CheckpointError
from xelm_nemo.model.config import VOCAB_MULTIPLE

log = logging.getLogger(__name__)


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
        CheckpointError: it is no NeMo checkpoint, one of another architecture, or damaged; or has weights
            for more tokens than the vocabulary.
        ArtifactError: the vocabulary is the tokenizer's, and there is none.
    """
    context = read_context(folder)
    words = tokenizer or context.tokenizer or str(folder)
    vocab_size = context.vocab_size or len(load_tokenizer(words))
    weights = open_weights(folder / WEIGHTS)
    if EMBEDDING in weights:
        _check_cut(weights[EMBEDDING], vocab_size, context, folder=folder, words=words)
    dtypes = {weight.dtype for weight in weights.values()}
    dtype = "bf16" if dtypes == {torch.bfloat16} else "fp32"
    return ModelFacts(context.shape, vocab_size, dtype, words, parent=str(folder), name=folder.name)


def _check_cut(table: LazyTensor, vocab_size: int, context: NemoContext, *, folder: Path, words: str) -> None:
    """See that the rows of the word embeddings beyond the vocabulary are padding.

    Padding is at most what makes a multiple of 128 for each tensor-parallel rank, of which there are no more
    than heads. It is zeros in our checkpoints and may be anything in NeMo's, which a vocabulary size in the
    context settles.

    Raises:
        CheckpointError: they are more than padding can be, or have zeros behind them.
    """
    rows, heads = table.shape[0], context.shape.num_attention_heads
    can_be_padding = rows - vocab_size < VOCAB_MULTIPLE * heads
    if rows <= vocab_size or (context.vocab_size is not None and can_be_padding):
        return
    filled = table.read()[vocab_size:].any(1).nonzero()
    used = vocab_size + int(filled[-1]) + 1 if len(filled) else vocab_size
    what = f"{words} has {vocab_size} tokens" if context.vocab_size is None else f"vocab_size={vocab_size}"
    if used > vocab_size and (used < rows or not can_be_padding):
        raise CheckpointError(
            f"{folder}: {what}, and {EMBEDDING} has {used} rows with weights; set tokenizer.path=DIR to the "
            "model's own tokenizer, or vocab_size in context/model.yaml."
        )
    if used > vocab_size:
        log.warning(
            "%s: %s, and %s has %d rows; the last %d are taken for padding and left out",
            *(folder, what, EMBEDDING, rows, rows - vocab_size),
        )
