"""Dense models become one sparse model: their feed-forward parts its moe_experts, all else averaged.

From one model that is sparse upcycling (Komatsuzaki et al. 2023), from the experts of a set Branch-Train-MiX
(Sukhbaatar et al. 2024). It works on files: a tensor is made at the moment it is written.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from xelm_nemo import artifacts
from xelm_nemo.artifacts import Recipe
from xelm_nemo.checkpoint.facts import WEIGHTS, ModelFacts, load_facts, write_facts
from xelm_nemo.checkpoint.filling import writing
from xelm_nemo.checkpoint.lazy import LazyTensor
from xelm_nemo.checkpoint.siblings import check_siblings
from xelm_nemo.errors import CheckpointError, ConfigError
from xelm_nemo.model.config import ModelConfig, ParallelConfig, SparseConfig
from xelm_nemo.model.sparse import sparse_problems

_IN_LAYER = re.compile(r"decoder\.layers\.(\d+)\.mlp\.(linear_fc[12])\.(.*)")
_NORM = "layer_norm_"  # of a dense layer, stored as part of its first product
_Sources = Sequence[Mapping[str, LazyTensor]]


def upcycle_models(
    models: Mapping[str, Path],
    output: Path,
    recipe: Recipe,
    *,
    gate: "GateStart",
    **settings: object,
) -> None:
    """Write dense models as one sparse model folder.

    Moe_expert e has the feed-forward part of model e, or of the only model. Averages are summed in float64.

    Args:
        models: name -> model folder; one, or as many as there are to be moe_experts.
        output: the model folder to write.
        recipe: what its manifest says that it was made from.
        gate: the gates' first weights.
        settings: those of `SparseConfig` beyond a dense shape.

    Raises:
        ConfigError: there can be no such sparse model.
        CheckpointError: the models differ in vocabulary or shape, or one is sparse already.
        ArtifactError: a folder holds no finished model.
    """
    facts = {name: load_facts(folder) for name, folder in models.items()}
    check_siblings(facts)
    shape = sparse_shape(next(iter(facts.values())).shape, **settings)
    if len(models) not in (1, shape.num_moe_experts):
        raise ConfigError(
            f"upcycle.num_moe_experts={shape.num_moe_experts} is not the number of models, {len(models)}."
        )
    from xelm_nemo.checkpoint.distributed import open_weights
    from xelm_nemo.checkpoint.distributed_files import write_weights

    weights = [open_weights(folder / WEIGHTS) for folder in models.values()]
    with writing(output), artifacts.build(output, recipe) as part:
        (part / WEIGHTS).mkdir()
        write_weights(part / WEIGHTS, sparse_weights(weights, shape, gate))
        write_facts(part, _facts(list(facts.values()), shape))


@dataclasses.dataclass(frozen=True)
class GateStart:
    """The first weights of gates: "normal", small as other weights; "uniform", from 0 to 1, as c-BTM's."""

    init: str = "normal"
    seed: int = 1234

    def weights(self, layer: int, shape: SparseConfig) -> Tensor:
        """Of one layer, float32 [moe_experts, hidden_size]."""
        generator = torch.Generator().manual_seed((self.seed << 16) + layer)
        drawn = torch.empty(shape.num_moe_experts, shape.hidden_size)
        if self.init == "uniform":
            return drawn.uniform_(generator=generator)
        return drawn.normal_(std=shape.init_method_std, generator=generator)


def sparse_shape(dense: ModelConfig, **settings: object) -> SparseConfig:
    """The shape of a sparse model made of dense ones.

    Raises:
        ConfigError: there can be no such model.
        CheckpointError: the shape is a sparse one already.
    """
    if isinstance(dense, SparseConfig):
        raise CheckpointError(
            f"the model has {dense.num_moe_experts} moe_experts already; give dense models to upcycle."
        )
    shape = SparseConfig(**dataclasses.asdict(dense), **settings)  # type: ignore[arg-type]
    if problems := sparse_problems(shape, ParallelConfig()):
        raise ConfigError("; ".join(problems) + ".")
    return shape


def sparse_weights(sources: _Sources, shape: SparseConfig, gate: GateStart) -> dict[str, LazyTensor]:
    """The tensors of a sparse model, under Megatron's names, made of those of dense models."""
    sparse = set(shape.moe_layers)
    made: dict[str, LazyTensor] = {}
    for name in sources[0]:
        tensors = [source[name] for source in sources]
        found = _IN_LAYER.fullmatch(name)
        if found is None or int(found[1]) not in sparse:
            made[name] = _averaged(tensors)
        elif found[3].startswith(_NORM):
            norm = found[3].removeprefix(_NORM)
            made[f"decoder.layers.{found[1]}.pre_mlp_layernorm.{norm}"] = _averaged(tensors)
        else:
            expert = f"decoder.layers.{found[1]}.mlp.experts.experts.{found[2]}.{found[3]}"
            made[expert] = _stacked(tensors, shape.num_moe_experts)
    like = next(iter(sources[0].values()))
    for layer in shape.moe_layers:
        read = partial(_gate, gate, layer, shape, like.dtype)
        size = (shape.num_moe_experts, shape.hidden_size)
        made[f"decoder.layers.{layer}.mlp.router.weight"] = LazyTensor(size, like.dtype, read, like.place)
    return made


def _gate(gate: GateStart, layer: int, shape: SparseConfig, dtype: torch.dtype) -> Tensor:
    return gate.weights(layer, shape).to(dtype)


def _averaged(tensors: Sequence[LazyTensor]) -> LazyTensor:
    if len(tensors) == 1:
        return tensors[0]

    def read() -> Tensor:
        total = torch.zeros(tensors[0].shape, dtype=torch.float64)
        for tensor in tensors:
            total += tensor.read()
        return (total / len(tensors)).to(tensors[0].dtype)

    return dataclasses.replace(tensors[0], read=read)


def _stacked(tensors: Sequence[LazyTensor], num_moe_experts: int) -> LazyTensor:
    """One tensor of every moe_expert's, which are the models' in turn."""

    def read() -> Tensor:
        if len(tensors) == 1:
            return torch.stack([tensors[0].read()] * num_moe_experts)
        return torch.stack([tensor.read().to(tensors[0].dtype) for tensor in tensors])

    return dataclasses.replace(tensors[0], shape=(num_moe_experts, *tensors[0].shape), read=read)


def _facts(of_models: Sequence[ModelFacts], shape: SparseConfig) -> ModelFacts:
    """What is known of the sparse model: the first model's vocabulary and dtype, and the tokens of all."""
    return dataclasses.replace(
        of_models[0],
        shape=shape,
        iteration=max(facts.iteration for facts in of_models),
        consumed_tokens=sum(facts.consumed_tokens for facts in of_models),
        parent=None,
        name="upcycled",
    )
