"""The forms in which a benchmark of training steps measures a model: dense, and upcycled to a sparse one."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from xelm_nemo.bench.setting import Setting
from xelm_nemo.bench.timing import Row
from xelm_nemo.errors import ConfigError
from xelm_nemo.model.config import ModelConfig, SparseConfig, moe_elements, num_parameters
from xelm_nemo.model.sparse import sparse_problems


def forms(setting: Setting, *, num_moe_experts: int, capacities: str) -> Iterator[tuple[Row, Setting]]:
    """A job as it is and, if there are to be moe_experts, its model's other forms; what rows say of each.

    Sparse forms have every second layer with so many moe_experts, two of which compute for a token, once for
    each of the capacities. One more dense form has wider layers, so that as many weights compute for a token.

    Raises:
        ConfigError: there can be no such sparse model, or a capacity is none.
    """
    if not num_moe_experts:
        yield {}, setting
        return
    if setting.fp8.is_used:
        raise ConfigError(f"num_moe_experts={num_moe_experts} does not go with FP8; use precision=bf16.")
    sparse = [_sparse(setting.shape, num_moe_experts, word) for word in capacities.split(",")]
    for one in sparse:
        if problems := sparse_problems(one, setting.layout):
            raise ConfigError("; ".join(problems) + ".")
    dense: dict[str, ModelConfig] = {"dense": setting.shape, "dense_wider": _with_as_many_active(sparse[0])}
    for form, shape in [*dense.items(), *(("sparse", one) for one in sparse)]:
        sizes = {name: count(shape, setting.vocab_size) for name, count in _COUNTS.items()}
        row: Row = {"form": form, "ffn_hidden_size": shape.ffn_hidden_size, **sizes}
        if isinstance(shape, SparseConfig):
            capacity = shape.moe_expert_capacity_factor
            row |= {"num_moe_experts": num_moe_experts, "moe_expert_capacity_factor": capacity}
        yield row, dataclasses.replace(setting, shape=shape)


def active_parameters(shape: ModelConfig, vocab_size: int) -> int:
    """Weights that compute for a token: all of a dense model, and of moe_experts those it goes to."""
    total = num_parameters(shape, vocab_size)
    if not isinstance(shape, SparseConfig):
        return total
    idle = shape.num_moe_experts - shape.moe_router_topk
    return total - len(shape.moe_layers) * idle * moe_elements(shape)


_COUNTS = {"parameters": num_parameters, "active_parameters": active_parameters}


def _sparse(shape: ModelConfig, num_moe_experts: int, capacity: str) -> SparseConfig:
    try:
        factor = None if capacity == "null" else float(capacity)
        if factor is not None and not factor > 0:
            raise ValueError
    except ValueError:
        raise ConfigError(
            f"moe_capacities={capacity!r}: write numbers above 0 or null, such as 1.0,null."
        ) from None
    settings: Any = {"num_moe_experts": num_moe_experts, "moe_expert_capacity_factor": factor}
    return SparseConfig(**dataclasses.asdict(shape), **settings)


def _with_as_many_active(sparse: SparseConfig) -> ModelConfig:
    """The dense shape whose feed-forward parts are as wide as those of a token, on the mean of all layers."""
    width = sparse.ffn_hidden_size
    more = width * (sparse.moe_router_topk - 1) * len(sparse.moe_layers) // sparse.num_layers
    return dataclasses.replace(sparse.dense, ffn_hidden_size=width + more)
