"""Which implementation each layer has: Transformer Engine's on a GPU, Megatron's own on a CPU."""

import functools
from typing import Any

import torch

from xelm_nemo import device
from xelm_nemo.model.fp8_state import use_plain_state

NO_FP8_HERE = (
    "precision.fp8 needs a GPU of compute capability 8.9 or more and Transformer Engine; set precision=bf16"
)


class LayerNorm(torch.nn.LayerNorm):
    """torch's LayerNorm, marked so that Megatron sums its gradient over sequence-parallel ranks.

    Megatron's wrapper of torch's LayerNorm refuses sequence parallelism for want of this mark.
    """

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5) -> None:
        """Take what Megatron passes to the norm of a layer."""
        super().__init__(hidden_size, eps=eps)
        for parameter in self.parameters():
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


def replicated_linear(config: Any, in_features: int, out_features: int) -> torch.nn.Linear:
    """A projection without bias that every tensor-parallel rank holds whole."""
    linear = torch.nn.Linear(in_features, out_features, bias=False)
    config.init_method(linear.weight)
    linear.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
    return linear


def block_spec(config: Any, *, transformer_engine: bool, post_layernorm: bool = False) -> Any:
    """Megatron's description of this pipeline stage's layers and of the final norm.

    Both implementations save under the same checkpoint names, so a model moves between them.

    Args:
        config: Megatron's configuration of the model.
        transformer_engine: whether layers are Transformer Engine's or Megatron's own.
        post_layernorm: whether norms come after the sums; then there is no final one.
    """
    from megatron.core.transformer.transformer_block import (
        TransformerBlockSubmodules,
        get_num_layers_to_build,
    )
    from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

    norm = _norm(transformer_engine)
    dense = _layer(None, transformer_engine=transformer_engine)
    if post_layernorm:
        _move_norms_behind(dense, norm, transformer_engine=transformer_engine)
    first = get_transformer_layer_offset(config)
    layers = [dense] * config.num_layers
    if config.num_moe_experts is not None:
        grouped = config.moe_grouped_gemm
        sparse = _layer(config.num_moe_experts, transformer_engine=transformer_engine, grouped=grouped)
        freq = config.moe_layer_freq
        is_sparse = freq if isinstance(freq, list) else [1] * config.num_layers
        layers = [sparse if has_experts else dense for has_experts in is_sparse]
    own = layers[first : first + get_num_layers_to_build(config)]
    return TransformerBlockSubmodules(layer_specs=own, layer_norm=None if post_layernorm else norm)


def _norm(transformer_engine: bool) -> type:
    if not transformer_engine:
        return LayerNorm
    from megatron.core.extensions.transformer_engine import TENorm

    return TENorm  # type: ignore[no-any-return]


def _layer(num_moe_experts: int | None, *, transformer_engine: bool, grouped: bool = False) -> Any:
    """Megatron's description of a layer, dense or with so many moe_experts."""
    from megatron.core.models.gpt import gpt_layer_specs

    if transformer_engine:
        layer = gpt_layer_specs.get_gpt_layer_with_transformer_engine_spec(
            num_experts=num_moe_experts, moe_grouped_gemm=grouped
        )
        _add_biases_in_products(layer.submodules, has_mlp=num_moe_experts is None)
        _split_without_copies()
        use_plain_state()
    else:
        layer = gpt_layer_specs.get_gpt_layer_local_spec(num_experts=num_moe_experts)
        layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = LayerNorm
        if num_moe_experts is not None:  # the norm before them is by itself with Transformer Engine too
            del layer.submodules.sharded_state_dict_keys_map["pre_mlp_layernorm."]
    if num_moe_experts is not None:
        _mend_experts(layer.submodules.mlp.submodules.experts, grouped=grouped)
    return layer


def _mend_experts(experts: Any, *, grouped: bool) -> None:
    """Have moe_experts add their last biases where autograd allows it."""
    from xelm_nemo.model.moe import GroupedExperts

    products = experts.submodules
    if grouped:
        experts.module, products.linear_fc2 = GroupedExperts, _with_bias(products.linear_fc2)
    else:
        products.linear_fc2 = _with_own_output(products.linear_fc2)


def _move_norms_behind(layer: Any, norm: Any, *, transformer_engine: bool) -> None:
    """Turn the description of a pre-norm layer into that of a post-norm layer."""
    from megatron.core.transformer.identity_op import IdentityOp

    from xelm_nemo.model.post_norm import PostNormLayer

    layer.module, layer.params = PostNormLayer, {"norm": norm}
    parts = layer.submodules
    parts.input_layernorm = parts.pre_mlp_layernorm = IdentityOp
    parts.sharded_state_dict_keys_map = {}  # it would rename the norms that are no longer there
    if transformer_engine:  # whose linear layers contain the norms before them
        from megatron.core.extensions.transformer_engine import TEColumnParallelLinear

        parts.self_attention.submodules.linear_qkv = TEColumnParallelLinear
        parts.mlp.submodules.linear_fc1 = _with_bias(TEColumnParallelLinear)


def _add_biases_in_products(parts: Any, *, has_mlp: bool) -> None:
    """Have a matrix product add its bias where it writes: Megatron keeps three for steps of their own."""
    attention, mlp = parts.self_attention.submodules, parts.mlp.submodules
    attention.linear_proj = _with_bias(attention.linear_proj)
    if not has_mlp:
        return  # a moe_expert weighs its last bias by the gate
    mlp.linear_fc1, mlp.linear_fc2 = _with_bias(mlp.linear_fc1), _with_bias(mlp.linear_fc2)


@functools.cache
def _with_bias(linear: type) -> type:
    def init(self: Any, *args: Any, **options: Any) -> None:
        linear.__init__(self, *args, **options | {"skip_bias_add": False})  # type: ignore[misc]
        if self.tp_size == 1:  # else the bias is added once ranks have summed their parts
            self.gemm_bias_unfused_add = False

    return type(linear.__name__, (linear,), {"__init__": init})


@functools.cache
def _with_own_output(linear: type) -> type:
    """The last product of a moe_expert, to whose output Megatron adds a bias in place.

    That output is a view made by a function of its own, where autograd forbids it: Transformer Engine's
    always, Megatron's on one rank.
    """

    def forward(self: Any, x: Any) -> Any:
        output, bias = linear.forward(self, x)  # type: ignore[attr-defined]
        return output.clone(), bias

    return type(linear.__name__, (linear,), {"forward": forward})


def _split_without_copies() -> None:
    """Give Megatron the split that joins the gradients of queries, keys and values where they lie.

    It looks for it under a name that Transformer Engine no longer has, and copies them instead.
    """
    from megatron.core.transformer import attention
    from transformer_engine.pytorch.utils import SplitAlongDim

    attention.SplitAlongDim = SplitAlongDim.apply


def has_transformer_engine() -> bool:
    """Whether layers can be Transformer Engine's: it is installed and there is a GPU."""
    import importlib.util

    return device.has_cuda() and importlib.util.find_spec("transformer_engine") is not None


def has_fp8() -> bool:
    """Whether products can be in FP8 here."""
    return has_transformer_engine() and device.capability() >= (8, 9)
