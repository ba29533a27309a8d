"""Settings of upcycling: how a dense model becomes a sparse one."""

from dataclasses import dataclass
from typing import Any

GATE_STARTS = ("normal", "uniform")


@dataclass(frozen=True)
class UpcycleConfig:
    """One sparse model from the seed model, on all clusters and the tokens of all experts of all rounds.

    Defaults are c-BTM's baseline, but for the gates' first weights; names are Megatron's where it has one.
    """

    enabled: bool = False
    num_moe_experts: int = 32  # feed-forward parts of a sparse layer
    moe_layer_freq: int = 2  # the last of every so many layers is sparse
    moe_router_topk: int = 2  # moe_experts of a token
    moe_expert_capacity_factor: float | None = 1.0  # of an even share; None: no token is left out
    moe_aux_loss_coeff: float = 0.01  # of the loss that draws gates towards equal use
    gate_init: str = "normal"  # small, as other weights; "uniform": from 0 to 1, as c-BTM has it
    train_iters: int | None = None  # None: as the experts, of all rounds
    lr: float | None = None  # None: as the experts

    @property
    def shape_settings(self) -> dict[str, Any]:
        """What the sparse shape has beyond the dense one."""
        names = ("num_moe_experts", "moe_layer_freq", "moe_router_topk", "moe_expert_capacity_factor")
        return {name: getattr(self, name) for name in (*names, "moe_aux_loss_coeff")}
