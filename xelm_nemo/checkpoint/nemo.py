"""NeMo 2's checkpoint folders in, without NeMo: `weights/` is Megatron's, under the names that ours have."""

from pathlib import Path

from xelm_nemo import parallel
from xelm_nemo.artifacts import Recipe
from xelm_nemo.checkpoint import store
from xelm_nemo.checkpoint.facts import ModelFacts
from xelm_nemo.checkpoint.nemo_context import read_nemo_shape, tokenizer_place, vocab_size
from xelm_nemo.checkpoint.weights import HfWeights, check_finite
from xelm_nemo.corpus.tokenizer import load_tokenizer
from xelm_nemo.errors import CheckpointError
from xelm_nemo.model.config import ParallelConfig


def import_nemo(source: Path, output: Path, recipe: Recipe, *, tokenizer: str | None = None) -> None:
    """Write a NeMo checkpoint of an XGLM or OPT as a model folder, at whatever layout NeMo saved it.

    Args:
        source: a folder with `weights/` and `context/`. What a training run saved beside the weights, such
            as the optimizer's state, is left there.
        output: the model folder to write.
        recipe: what the model folder's manifest says that it was made from.
        tokenizer: the folder or hub id of its tokenizer; None: the one in the context.

    Raises:
        CheckpointError: as `read_nemo_facts`; weights are missing, of another shape, or hold a number that
            is not finite. No output is left behind.
    """
    facts = read_nemo_facts(source, tokenizer=tokenizer)
    with parallel.model_parallel(alone=True):
        model = store.load_model(source, ParallelConfig(), facts=facts)
        weights = dict(model.named_parameters())
        check_finite(HfWeights(weights, dict.fromkeys(weights, source / store.WEIGHTS)))
        store.save_model(output, model, facts, recipe)


def read_nemo_facts(folder: Path, *, tokenizer: str | None = None) -> ModelFacts:
    """What a NeMo checkpoint says of its model.

    Args:
        folder: the checkpoint.
        tokenizer: the folder or hub id of its tokenizer; None: the one in the context.

    Raises:
        CheckpointError: it is no NeMo checkpoint, one of another architecture, or has no tokenizer.
        ArtifactError: the tokenizer cannot be read.
    """
    shape, place = read_nemo_shape(folder), tokenizer or tokenizer_place(folder)
    if place is None:
        raise CheckpointError(f"{folder} brings no tokenizer; set tokenizer.path to that of its model.")
    return ModelFacts(
        shape,
        vocab_size(folder) or len(load_tokenizer(place)),
        store.stored_dtype(folder),
        place,
        parent=str(folder),
        name=folder.name,
    )
