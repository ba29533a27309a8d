"""Rules for choosing among options, as the few-shot evaluations of c-BTM and X-ELM mix experts.

They are not the mixture of next tokens that perplexity is taken of, nor each other.
Shape letters: E experts, O options, T tokens, V vocabulary.
"""

import torch
from torch import Tensor


def sequence_scores(log_p_EO: Tensor, log_w_E: Tensor, top_k: int | None = None) -> Tensor:
    """c-BTM's: score_o = log sum_e w_e p_e(option o | prompt), the experts mixed once a sequence.

    Args:
        log_p_EO: summed log-probability of each option's tokens under each expert, nats, [E, O].
        log_w_E: log-weights of the experts for the prompt (c-BTM: the router's at temperature 1), [E].
        top_k: weights kept; the others become 0 and, as in c-BTM, nothing is renormalised.

    Returns:
        float64 [O]; the largest is the answer.
    """
    if top_k is not None and top_k < len(log_w_E):
        kept = log_w_E.sort(descending=True, stable=True).indices[:top_k]
        log_w_E = torch.full_like(log_w_E, -torch.inf).scatter(0, kept, log_w_E[kept])
    weighed_EO = log_p_EO.double() + log_w_E.double()[:, None]
    return torch.logsumexp(weighed_EO, dim=0)


def logit_average_log_prob(logits_ETV: Tensor, w_E: Tensor, target_T: Tensor) -> Tensor:
    """X-ELM's: log softmax(sum_e w_e z_e) of each target, a geometric rather than an arithmetic mean.

    Args:
        logits_ETV: each expert's logits, [E, T, V].
        w_E: weights of the experts for the prompt, [E]; an expert of weight 0 is left out.
        target_T: ids of the target tokens, int64 [T].

    Returns:
        nats, float64 [T].
    """
    chosen = w_E.nonzero()[:, 0]  # 0 * -inf would be no number
    logits_TV = torch.einsum("e,etv->tv", w_E[chosen].double(), logits_ETV[chosen].double())
    return torch.log_softmax(logits_TV, -1).gather(-1, target_T[:, None])[:, 0]
