"""Layers with several feed-forward parts: Megatron's, with the gate of GShard and a tally of its choices.

Shape letters: E moe_experts, F feed-forward width, H hidden size, T tokens.
"""

import copy
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.transformer.moe import moe_utils
from megatron.core.transformer.moe.experts import TEGroupedMLP
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler
from megatron.core.transformer.moe.router import TopKRouter
from torch import Tensor, nn

from xelm_nemo import device

if not hasattr(moe_utils, "te_general_gemm"):
    moe_utils.te_general_gemm = None  # Megatron asks for it also where there is no Transformer Engine


class Gate(TopKRouter):
    """Megatron's moe_router, whose weights of a token sum to 1 also where a moe_expert had no room for it.

    Only training has a capacity: a text's probability must not depend on those beside it in a batch.
    """

    config: Any
    tally: dict[str, Tensor]  # of the training steps since the last look

    def routing(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and choices of moe_experts, [T, E] each; a token for which none has room has no weight."""
        factor = self.config.moe_expert_capacity_factor
        if factor is None or self.training:
            probs_TE, chosen_TE = super().routing(logits)
        else:
            own, self.config = self.config, copy.copy(self.config)
            self.config.moe_expert_capacity_factor = None
            try:
                probs_TE, chosen_TE = super().routing(logits)
            finally:
                self.config = own
        if factor is not None and self.training:
            probs_TE = probs_TE / probs_TE.sum(-1, keepdim=True).clamp_min(1e-9)
        if self.training and torch.is_grad_enabled():  # not again where layers are computed a second time
            self._count(chosen_TE)
        return probs_TE, chosen_TE

    def attach_and_log_load_balancing_loss(
        self, activation: Tensor, aux_loss_coeff: float, aux_loss: Tensor, *_: Any
    ) -> Tensor:
        """Have backward add this loss. Megatron's own keeps it in one table for all models of the process."""
        self.tally["aux"] = self.tally["aux"] + aux_loss.detach().double() / aux_loss_coeff
        attached: Tensor = MoEAuxLossAutoScaler.apply(activation, aux_loss)
        return attached

    def _count(self, chosen_TE: Tensor) -> None:
        self.tally["load_E"] = self.tally["load_E"] + chosen_TE.sum(0)
        self.tally["tokens"] = self.tally["tokens"] + len(chosen_TE)
        self.tally["calls"] = self.tally["calls"] + 1

    def forget(self) -> None:
        """Begin a new tally."""
        empty = torch.zeros((), dtype=torch.float64, device=device.device())  # weights may not be there yet
        self.tally = dict.fromkeys(("aux", "tokens", "calls"), empty)
        self.tally["load_E"] = empty.expand(self.num_experts)


class GroupedExperts(TEGroupedMLP):
    """Megatron's moe_experts of a rank, the products of all of them in one call of Transformer Engine.

    The products add biases. Megatron adds the last ones itself, in float32 and one moe_expert after another,
    and weighs the activations, which are some times as wide as the outputs that are weighed here, and which
    it then keeps twice for backward.
    """

    config: Any
    linear_fc1: Any
    linear_fc2: Any

    def __init__(
        self, num_local_experts: int, config: Any, submodules: Any, pg_collection: Any = None
    ) -> None:
        """Build them; the last product has to add its bias itself."""
        own = copy.copy(config)
        own.bias_dropout_fusion = False  # which Megatron refuses, though no bias is left for that step
        super().__init__(num_local_experts, own, submodules, pg_collection)

    def forward(self, tokens_TH: Tensor, count_E: Tensor, weight_T: Tensor) -> tuple[Tensor, None]:
        """Outputs [T, H] by the gate's weights; tokens are sorted by moe_expert, `count_E` of each."""
        counts = count_E.tolist()
        hidden_TF, _ = self.linear_fc1(tokens_TH, counts)
        output_TH, _ = self.linear_fc2(self.config.activation_func(hidden_TF), counts)
        return (output_TH * weight_T.unsqueeze(-1)).to(output_TH.dtype), None


def mend_layers(model: nn.Module) -> None:
    """Put our gate, which has no bias, in place of Megatron's moe_routers, and mark moe_experts' weights.

    Megatron marks a moe_expert's last bias as one that all tensor-parallel ranks have: it sums its gradient
    over them and counts it once in the norm. Whole moe_experts are of different ones on every rank.
    """
    for layer in _sparse_layers(model):
        layer.router.__class__ = Gate  # Megatron builds its own and takes no other
        layer.router.bias = None
        layer.router.forget()
        for parameter in layer.experts.parameters():
            parameter.sequence_parallel = False
            parameter.tensor_model_parallel = True


def forget_balance(model: nn.Module) -> None:
    """Begin new tallies, without the steps since the last look."""
    for layer in _sparse_layers(model):
        layer.router.forget()


def _sparse_layers(model: nn.Module) -> list[Any]:
    return [layer for layer in model.modules() if isinstance(layer, MoELayer)]


def gate_balance(model: nn.Module, *, tensor_model_parallel_size: int) -> dict[str, float]:
    """How evenly the gates have used moe_experts since the last call; nothing for a dense model.

    All ranks of a model call it, for each has seen other tokens or layers.

    Returns:
        Means over layers. "moe_aux_loss": 1 where gates are even, before its coefficient, and not there where
        that is 0, for it is then not computed; "moe_load_max" and "moe_load_min": tokens of the most and the
        least used moe_expert, in shares of the mean; "moe_dropped": share of choices that found no room.
    """
    config: Any = model.config
    if config.num_moe_experts is None:
        return {}
    found = torch.zeros(config.num_layers, config.num_moe_experts + 3, dtype=torch.float64)
    for layer in _sparse_layers(model):
        tally, row = layer.router.tally, found[layer.layer_number - 1]
        row[:3] = torch.stack([tally["aux"], tally["tokens"], tally["calls"]]).cpu()
        row[3:] = tally["load_E"].cpu()
        layer.router.forget()
    place = next(model.parameters()).device
    found = found.to(place)
    dist.all_reduce(found)
    used = found[found[:, 2] > 0].cpu()
    if not len(used):
        return {}
    aux, tokens, calls, load_LE = used[:, 0], used[:, 1], used[:, 2], used[:, 3:]
    mean_L = load_LE.mean(1).clamp_min(1e-9)
    # Under sequence parallelism each rank has a part of a micro-batch's loss.
    loss = {"moe_aux_loss": float((aux / calls).mean()) * tensor_model_parallel_size}
    return (loss if config.moe_aux_loss_coeff else {}) | {
        "moe_load_max": float((load_LE.amax(1) / mean_L).mean()),
        "moe_load_min": float((load_LE.amin(1) / mean_L).mean()),
        "moe_dropped": float((1 - load_LE.sum(1) / (tokens * config.moe_router_topk)).mean()),
    }
