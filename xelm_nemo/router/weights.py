"""Distances to the experts' centroids become weights over the experts.

Shape letters: T tokens, K clusters (one expert each).
"""

import torch
from torch import Tensor

from xelm_nemo.errors import ConfigError

RULES = ("upstream", "paper")


def router_weights(
    squared_distance_TK: Tensor, *, temperature: float, rule: str = "upstream", top_k: int | None = None
) -> Tensor:
    """Weight of every expert at every token.

    Rule "upstream" is softmax(-(d^2)^2 / T), what the programs of c-BTM and X-ELM compute; rule
    "paper" is softmax(-d^2 / T), the formula that c-BTM (arXiv 2303.14177) prints. d is the
    Euclidean distance from the prefix to the centroid, T the temperature.

    Args:
        squared_distance_TK: d^2, any float type, [T, K].
        temperature: T, above 0; small T trusts the nearest centroid.
        rule: one of `RULES`.
        top_k: experts kept per token, renormalised; of equal ones the lower index. None keeps all.

    Returns:
        float32 [T, K]; rows sum to 1.

    Raises:
        ConfigError: an unknown rule, a temperature not above 0, or a top_k below 1.
    """
    return router_log_weights(squared_distance_TK, temperature=temperature, rule=rule, top_k=top_k).exp()


def router_log_weights(
    squared_distance_TK: Tensor, *, temperature: float, rule: str = "upstream", top_k: int | None = None
) -> Tensor:
    """Logarithm of `router_weights`: float32 [T, K], -inf for experts that top_k drops."""
    if not temperature > 0:
        raise ConfigError(
            f"router.temperature={temperature!r} must be above 0; X-ELM uses 0.1, and smaller trusts the "
            "nearest cluster more."
        )
    if rule not in RULES:
        raise ConfigError(f"router.rule={rule!r} is not a rule; use one of {list(RULES)}.")
    # float64: (d^2)^2 / T reaches 160, where float32 would already be wrong in the fifth digit. What lies far
    # above the least has no weight to speak of, so float32 is enough from there on.
    energy_TK = squared_distance_TK.double()
    if rule == "upstream":
        energy_TK = energy_TK.square()
    excess_TK = ((energy_TK - energy_TK.amin(-1, keepdim=True)) / temperature).float()
    return keep_top_k(torch.log_softmax(-excess_TK, dim=-1), top_k)


def keep_top_k(log_w_TK: Tensor, top_k: int | None) -> Tensor:
    """Keep the largest weights of each row and renormalise; of equal ones the lower index stays.

    Args:
        log_w_TK: log-weights, [T, K].
        top_k: experts kept; None, or K and more, returns the input.

    Returns:
        log-weights [T, K] of the same type, -inf for the experts dropped.

    Raises:
        ConfigError: top_k is below 1.
    """
    if top_k is None:
        return log_w_TK
    if top_k < 1:
        raise ConfigError(f"top_k={top_k!r} keeps no expert; use 1 or more, or leave it out to keep all.")
    if top_k >= log_w_TK.shape[-1]:
        return log_w_TK
    order_TK = log_w_TK.sort(dim=-1, descending=True, stable=True).indices
    kept = order_TK[..., :top_k]
    masked_TK = torch.full_like(log_w_TK, -torch.inf).scatter(-1, kept, log_w_TK.gather(-1, kept))
    return torch.log_softmax(masked_TK, dim=-1)
