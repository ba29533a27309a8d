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


def logit_average_log_probs(logits_ETV: Tensor, log_w_TE: Tensor) -> Tensor:
    """X-ELM's: log softmax(sum_e w_e z_e) of every token, a geometric rather than an arithmetic mean.

    Args:
        logits_ETV: each expert's logits, [E, T, V].
        log_w_TE: log-weights of the experts, in X-ELM those for the prompt at each token, [T, E];
            -inf leaves an expert out.

    Returns:
        nats, float32 [T, V], float64 of such logits.
    """
    dtype = torch.promote_types(logits_ETV.dtype, torch.float32)
    mean_TV = torch.zeros_like(logits_ETV[0], dtype=dtype)
    for logits_TV, w_T in zip(logits_ETV, log_w_TE.T.to(dtype).exp(), strict=True):
        w_T1 = w_T[:, None]
        mean_TV += (w_T1 * logits_TV).where(w_T1 > 0, 0)  # 0 * -inf would be no number
    return torch.log_softmax(mean_TV, -1)
