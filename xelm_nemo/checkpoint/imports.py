"""The end of every import: weights under Hugging Face's names become a model folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from xelm_nemo import parallel
from xelm_nemo.artifacts import Recipe
from xelm_nemo.checkpoint import store
from xelm_nemo.checkpoint.architectures import ARCHITECTURES, shape_of
from xelm_nemo.checkpoint.facts import ModelFacts
from xelm_nemo.checkpoint.mapping import megatron_tensors
from xelm_nemo.checkpoint.weights import HfWeights, check_finite
from xelm_nemo.model.config import ParallelConfig
from xelm_nemo.model.gpt import build_model


def import_weights(
    weights: HfWeights,
    config: Mapping[str, Any],
    output: Path,
    recipe: Recipe,
    *,
    source: str,
    tokenizer: str,
) -> None:
    """Write weights as a model folder; the process is a world of its own while it does.

    bfloat16 weights stay bfloat16; float16 and mixed ones become float32, which holds them exactly.

    Args:
        weights: under Hugging Face's full names.
        config: its config.json.
        output: the model folder to write.
        recipe: what the model folder's manifest says that it was made from.
        source: folder, file or hub id that errors name and that the model's parent is called.
        tokenizer: folder or hub id of its tokenizer.

    Raises:
        CheckpointError: settings that our model cannot compute with; names the tensors that are missing,
            unknown, of another shape, or hold a weight that is no finite number. No output is left behind.
    """
    shape = shape_of(config, source)
    dtype = "bf16" if {weight.dtype for weight in weights.tensors.values()} == {torch.bfloat16} else "fp32"
    name = Path(source).name.removesuffix(".pt")
    facts = ModelFacts(shape, config["vocab_size"], dtype, tokenizer, parent=source, name=name)
    with parallel.model_parallel(alone=True):
        model = build_model(shape, ParallelConfig(), vocab_size=facts.vocab_size, dtype=store.DTYPES[dtype])
        weight_map = ARCHITECTURES[shape.architecture].weight_map(shape, facts.vocab_size)
        weight_map.to_megatron(weights.tensors, megatron_tensors(model), source=source)
        check_finite(weights)
        store.save_model(output, model, facts, recipe)
