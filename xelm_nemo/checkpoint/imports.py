"""The end of every import: weights under Hugging Face's names become a model folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from xelm_nemo import artifacts
from xelm_nemo.artifacts import Recipe
from xelm_nemo.checkpoint.architectures import ARCHITECTURES, shape_of
from xelm_nemo.checkpoint.facts import WEIGHTS, ModelFacts, write_facts
from xelm_nemo.checkpoint.filling import writing
from xelm_nemo.checkpoint.lazy import DTYPES, LazyTensor, finite


def import_weights(
    weights: Mapping[str, LazyTensor],
    config: Mapping[str, Any],
    output: Path,
    recipe: Recipe,
    *,
    source: str,
    tokenizer: str,
) -> None:
    """Write weights as a model folder, tensor by tensor.

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
    from xelm_nemo.checkpoint.distributed_files import write_weights

    shape = shape_of(config, source)
    dtypes = {weight.dtype for weight in weights.values()}
    dtype = "bf16" if dtypes == {torch.bfloat16} else "fp32"
    origin = "fp16" if dtypes == {torch.float16} else None
    name = Path(source).name.removesuffix(".pt")
    facts = ModelFacts(
        shape, config["vocab_size"], dtype, tokenizer, parent=source, name=name, origin_dtype=origin
    )
    weight_map = ARCHITECTURES[shape.architecture].weight_map(shape, facts.vocab_size)
    checked = {name: finite(name, weight) for name, weight in weights.items()}
    tensors = weight_map.to_megatron(checked, DTYPES[dtype], source=source)
    with writing(output), artifacts.build(output, recipe) as part:
        (part / WEIGHTS).mkdir()
        write_weights(part / WEIGHTS, tensors)
        write_facts(part, facts)
