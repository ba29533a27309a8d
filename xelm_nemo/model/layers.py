"""Which implementation each layer has: Transformer Engine's on a GPU, Megatron's own on a CPU."""

from typing import Any

import torch

from xelm_nemo import device


class LayerNorm(torch.nn.LayerNorm):
    """torch's LayerNorm, marked so that Megatron sums its gradient over sequence-parallel ranks.

    Megatron's wrapper of torch's LayerNorm refuses sequence parallelism for want of this mark.
    """

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5) -> None:
        """Take what Megatron passes to the norm of a layer."""
        super().__init__(hidden_size, eps=eps)
        for parameter in self.parameters():
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]


def block_spec(config: Any, *, transformer_engine: bool) -> Any:
    """Megatron's description of this pipeline stage's layers and of the final norm.

    Both kinds save under the same checkpoint names, so a model moves between them.
    """
    from megatron.core.models.gpt import gpt_layer_specs
    from megatron.core.transformer.transformer_block import (
        TransformerBlockSubmodules,
        get_num_layers_to_build,
    )

    if transformer_engine:
        from megatron.core.extensions.transformer_engine import TENorm

        layer, norm = gpt_layer_specs.get_gpt_layer_with_transformer_engine_spec(), TENorm
    else:
        layer, norm = gpt_layer_specs.get_gpt_layer_local_spec(), LayerNorm
        layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = norm
    return TransformerBlockSubmodules(layer_specs=[layer] * get_num_layers_to_build(config), layer_norm=norm)


def has_transformer_engine() -> bool:
    """Whether layers can be Transformer Engine's: it is installed and there is a GPU."""
    import importlib.util

    return device.has_cuda() and importlib.util.find_spec("transformer_engine") is not None
