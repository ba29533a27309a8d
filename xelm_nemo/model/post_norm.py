"""The layer of OPT-350M: a norm after every sum, where all other models have one before every branch."""

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.transformer.transformer_layer import TransformerLayer
from megatron.core.utils import make_viewless_tensor


class PostNormLayer(TransformerLayer):
    """x = norm(x + attention(x)), then x = norm(x + feed_forward(x)), as in Vaswani et al. (2017).

    The norms have the names that NeMo gives them in BERT.
    """

    def __init__(self, config: Any, *args: Any, norm: Callable[..., torch.nn.Module], **kwargs: Any) -> None:
        """Take what Megatron passes to a layer, and `norm`, the kind of its norms."""
        super().__init__(config, *args, **kwargs)
        size = {"hidden_size": config.hidden_size, "eps": config.layernorm_epsilon}
        self.post_att_layernorm = norm(config=config, **size)
        self.post_mlp_layernorm = norm(config=config, **size)

    def _forward_attention(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, Any]:
        hidden_SBH, context = super()._forward_attention(*args, **kwargs)
        return self.post_att_layernorm(hidden_SBH), context

    def _forward_mlp(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        hidden_SBH = self.post_mlp_layernorm(super()._forward_mlp(*args, **kwargs))
        # Pipeline stages free what they have sent, which must not be a view: Transformer Engine's norm
        # gives one.
        output: torch.Tensor = make_viewless_tensor(
            hidden_SBH, requires_grad=hidden_SBH.requires_grad, keep_graph=True
        )
        return output
