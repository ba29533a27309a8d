"""Float32 master weights where the model's own are less: read from a model folder, and written as one.

With `precision.fp8.param_gather` the layers' matrices are in FP8 (Megatron's `fp8_param`), and there is
nothing else of them but what the optimizer steps on. So it is the masters that take up a seed model's weights
and become the finished model's, and a checkpoint has the matrices in the optimizer's state alone.
"""

import dataclasses
import re
from typing import Any

import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor

from xelm_nemo.checkpoint.optim_state import boxed, own_weights

_MATRIX = re.compile(r"\.linear_(qkv|proj|fc1|fc2)\.weight$")


def is_matrix(name: str) -> bool:
    """Whether a weight of this name multiplies tokens in a layer; those are what FP8 is for."""
    return _MATRIX.search(name) is not None


def without_matrices(model_state: dict[str, Any]) -> dict[str, Any]:
    """A model's sharded state without the layers' matrices, those that FP8 leaves out included."""
    return {name: value for name, value in model_state.items() if not is_matrix(name)}


def sharded_masters(
    optimizer: Any, model_state: dict[str, Any], dtype: torch.dtype | None = None
) -> dict[str, ShardedTensor]:
    """What this rank has of the master weights, under the names and in the places of the weights on disk.

    Args:
        optimizer: Megatron's, sharded over data-parallel ranks.
        model_state: the model's sharded weights.
        dtype: to give copies in; None gives the masters themselves, to be read into.
    """
    found: dict[str, ShardedTensor] = {}
    for part in optimizer.chained_optimizers:
        for weight in own_weights(part, model_state):
            master = part._get_main_param_and_optimizer_states(weight.data)["param"].detach()
            for box in boxed(part, weight, master, weight.key):
                if dtype is not None:
                    box = dataclasses.replace(box, data=box.data.to(dtype), dtype=dtype)
                found[f"{len(found)}"] = box
    return found


@torch.no_grad()
def renew_weights(optimizer: Any) -> None:
    """Make the model's weights from the masters, on all data-parallel ranks, as after a step."""
    for part in optimizer.chained_optimizers:
        part._copy_main_params_to_model_params()
        for model in part.model_chunks:
            model.start_param_sync(force_sync=True)
