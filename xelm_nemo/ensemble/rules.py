"""Ensemble rules: what is known about a document becomes log-weights over the experts.

Each rule gives log_w [T, E] whose row t weighs the experts' predictions of the same target that
column t of log_p [E, T] scores. Shape letters: E experts, T tokens.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from xelm_nemo.errors import ConfigError
from xelm_nemo.evaluation.config import TEXT_RULES
from xelm_nemo.router.config import RouterConfig
from xelm_nemo.router.weights import keep_top_k, router_log_weights

SCORE_RULES = ("bayes", "product_of_experts")  # what every expert says shapes their weights


@dataclass(frozen=True)
class Ensemble:
    """One way to mix the experts.

    Attributes:
        name: how reports call it.
        rule: one of `evaluation.config.RULES`.
        top_k: experts kept per token, renormalised; None keeps all.
        temperature: of the weights by distance; None takes the router's.
    """

    name: str
    rule: str
    top_k: int | None = None
    temperature: float | None = None


@dataclass(frozen=True)
class Evidence:
    """What the rules may look at in one document.

    Attributes:
        num_tokens: scored tokens, T.
        num_experts: E.
        distance_TE: squared distance of each prefix to each expert's centroid; `TEXT_RULES` need it.
        log_p_ET: each expert's log-probability of each target, nats; `SCORE_RULES` need it.
        language_expert: the expert of the document's language; only "top1_language" needs it.
        seed: of the rule "random"; another one for each document.
    """

    num_tokens: int
    num_experts: int
    distance_TE: Tensor | None = None
    log_p_ET: Tensor | None = None
    language_expert: int | None = None
    seed: int = 0


def ensemble_log_weights(ensemble: Ensemble, evidence: Evidence, router: RouterConfig) -> Tensor:
    """Log-weights of one document's tokens under one ensemble, [T, E].

    Raises:
        ConfigError: the rule does not exist, or the evidence that it needs is missing.
    """

    def by_distance(distance_TE: Tensor) -> Tensor:
        temperature = router.temperature if ensemble.temperature is None else ensemble.temperature
        return router_log_weights(distance_TE, temperature=temperature, rule=router.rule)

    num_tokens, num_experts = evidence.num_tokens, evidence.num_experts
    distance_TE, log_p_ET = evidence.distance_TE, evidence.log_p_ET
    match ensemble.rule:
        case "clustering" if distance_TE is not None:
            log_w_TE = by_distance(distance_TE)
        case "product_of_experts" if distance_TE is not None and log_p_ET is not None:
            log_w_TE = product_of_experts_log_weights(log_p_ET, by_distance(distance_TE))
        case "bayes" if log_p_ET is not None:
            log_w_TE = bayes_log_weights(log_p_ET)
        case "top1_language" if evidence.language_expert is not None:
            log_w_TE = single_expert_log_weights(num_tokens, num_experts, evidence.language_expert)
        case "uniform":
            log_w_TE = uniform_log_weights(num_tokens, num_experts)
        case "random":
            log_w_TE = by_distance(random_squared_distances(num_tokens, num_experts, evidence.seed))
        case rule:
            raise ConfigError(
                f"evaluation.rules={rule!r} cannot weigh this document; {list(TEXT_RULES)} need "
                f"a tf-idf clusterer, {list(SCORE_RULES)} every expert's scores, 'top1_language' a known "
                "language, 'uniform' and 'random' nothing."
            )
    return keep_top_k(log_w_TE, ensemble.top_k)


def experts_needed(ensemble: Ensemble, evidence: Evidence, router: RouterConfig) -> list[int]:
    """The experts that have weight at a token of the document; the others need not be run on it."""
    if ensemble.rule in SCORE_RULES:
        return list(range(evidence.num_experts))
    weighed_E = (ensemble_log_weights(ensemble, evidence, router) > -torch.inf).any(0)
    return [int(e) for e in weighed_E.nonzero()[:, 0]]


def uniform_log_weights(num_tokens: int, num_experts: int) -> Tensor:
    """The same weight for every expert at every token, [T, E]."""
    return torch.full((num_tokens, num_experts), -math.log(num_experts))


def single_expert_log_weights(num_tokens: int, num_experts: int, expert: int) -> Tensor:
    """All weight on one expert, [T, E]; X-ELM evaluates typological experts so, by language."""
    log_w_TE = torch.full((num_tokens, num_experts), -torch.inf)
    log_w_TE[:, expert] = 0.0
    return log_w_TE


def random_squared_distances(num_tokens: int, num_experts: int, seed: int) -> Tensor:
    """Distances that say nothing, drawn from [0, 1) anew at each token, [T, E]; a control for routing."""
    return torch.rand(num_tokens, num_experts, generator=torch.Generator().manual_seed(seed))


def bayes_log_weights(log_p_ET: Tensor, log_prior_E: Tensor | None = None) -> Tensor:
    """Weights from how well each expert predicted the previous token: w_je ~ prior_e p_e(x_j | x_<j).

    As upstream, the evidence is that one token, not the whole prefix; the first row is uniform.

    Args:
        log_p_ET: each expert's log-probability of each target, nats, [E, T].
        log_prior_E: log of the experts' prior, [E]; None is uniform.

    Returns:
        log-weights [T, E].
    """
    num_experts, num_tokens = log_p_ET.shape
    prior_E = uniform_log_weights(1, num_experts)[0] if log_prior_E is None else log_prior_E
    return _from_previous_token(log_p_ET, prior_E.expand(num_tokens, -1))


def product_of_experts_log_weights(log_p_ET: Tensor, router_log_w_TE: Tensor) -> Tensor:
    """Weights from the previous token and the router: w_je ~ p_e(x_j | x_<j) w^router_{j-1,e}.

    Upstream's "product_of_experts", which is still a mixture; the first row is uniform.

    Args:
        log_p_ET: each expert's log-probability of each target, nats, [E, T].
        router_log_w_TE: the router's log-weights, [T, E].

    Returns:
        log-weights [T, E].
    """
    return _from_previous_token(log_p_ET, router_log_w_TE)


def _from_previous_token(log_p_ET: Tensor, log_prior_TE: Tensor) -> Tensor:
    num_experts, num_tokens = log_p_ET.shape
    first = uniform_log_weights(min(num_tokens, 1), num_experts)
    # Column j-1 of log_p scores token x_j, the newest token that row j, which predicts x_{j+1}, has seen.
    later = torch.log_softmax((log_p_ET.T[:-1] + log_prior_TE[:-1]).double(), dim=-1)
    return torch.cat([first, later.to(first.dtype)])
