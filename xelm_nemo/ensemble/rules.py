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
from xelm_nemo.router.weights import keep_top_k


@dataclass(frozen=True)
class Ensemble:
    """One way to mix the experts.

    Attributes:
        name: how reports call it.
        rule: one of `evaluation.config.RULES`.
        top_k: experts kept per token, renormalised; None keeps all.
    """

    name: str
    rule: str
    top_k: int | None = None


@dataclass(frozen=True)
class Evidence:
    """What the rules may look at in one document.

    Attributes:
        log_p_ET: each expert's log-probability of each target, nats, [E, T].
        router_log_w_TE: the router's log-weights, [T, E]; only `TEXT_RULES` need them.
        language_expert: the expert of the document's language; only "top1_language" needs it.
    """

    log_p_ET: Tensor
    router_log_w_TE: Tensor | None = None
    language_expert: int | None = None


def ensemble_log_weights(ensemble: Ensemble, evidence: Evidence) -> Tensor:
    """Log-weights of one document's tokens under one ensemble, [T, E].

    Raises:
        ConfigError: the rule does not exist, or the evidence that it needs is missing.
    """
    num_experts, num_tokens = evidence.log_p_ET.shape
    match ensemble.rule:
        case "clustering" if evidence.router_log_w_TE is not None:
            log_w_TE = evidence.router_log_w_TE
        case "product_of_experts" if evidence.router_log_w_TE is not None:
            log_w_TE = product_of_experts_log_weights(evidence.log_p_ET, evidence.router_log_w_TE)
        case "top1_language" if evidence.language_expert is not None:
            log_w_TE = single_expert_log_weights(num_tokens, num_experts, evidence.language_expert)
        case "bayes":
            log_w_TE = bayes_log_weights(evidence.log_p_ET)
        case "uniform":
            log_w_TE = uniform_log_weights(num_tokens, num_experts)
        case rule:
            raise ConfigError(
                f"evaluation.rules={rule!r} cannot weigh this document; {list(TEXT_RULES)} need "
                "a tf-idf clusterer, 'top1_language' a known language, 'bayes' and 'uniform' nothing."
            )
    return keep_top_k(log_w_TE, ensemble.top_k)


def uniform_log_weights(num_tokens: int, num_experts: int) -> Tensor:
    """The same weight for every expert at every token, [T, E]."""
    return torch.full((num_tokens, num_experts), -math.log(num_experts))


def single_expert_log_weights(num_tokens: int, num_experts: int, expert: int) -> Tensor:
    """All weight on one expert, [T, E]; X-ELM evaluates typological experts so, by language."""
    log_w_TE = torch.full((num_tokens, num_experts), -torch.inf)
    log_w_TE[:, expert] = 0.0
    return log_w_TE


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
