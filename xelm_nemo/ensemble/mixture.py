"""The experts' probabilities become one: p(y) = sum_e w_e p_e(y).

Shape letters: E experts, T tokens, V vocabulary.
"""

import torch
from torch import Tensor


def mixture_log_prob(log_p_ET: Tensor, log_w_TE: Tensor) -> Tensor:
    """Log-probability of each target token under the weighted mixture of experts.

    log p_t = logsumexp_e(log w_te + log p_et), the safe form of upstream's mixture in probability
    space. With one expert, whose log-weight is 0, the result is that expert's, bit for bit.

    Args:
        log_p_ET: each expert's log-probability of each target, nats, [E, T].
        log_w_TE: log-weights of the experts at each token, [T, E]; -inf leaves an expert out.

    Returns:
        nats, float32 [T].

    Raises:
        ValueError: the shapes do not belong together.
    """
    if log_p_ET.shape != log_w_TE.T.shape:
        raise ValueError(
            f"mixture_log_prob: log_p is [E, T] = {list(log_p_ET.shape)}, so log_w must be [T, E]; "
            f"got {list(log_w_TE.shape)}."
        )
    return torch.logsumexp(log_p_ET.double() + log_w_TE.double().T, dim=0).float()


def target_log_prob(logits_ETV: Tensor, log_w_TE: Tensor, target_T: Tensor) -> Tensor:
    """The same mixture straight from the logits, for when all experts' logits are in memory at once.

    Where every expert is scored alone and mixed in many ways, as evaluation does, `mixture_log_prob`
    costs less.

    Args:
        logits_ETV: raw logits, padding of the vocabulary stripped, [E, T, V].
        log_w_TE: log-weights, [T, E].
        target_T: ids of the target tokens, int64 [T].

    Returns:
        nats, float32 [T]; a Triton kernel on a GPU, its float64 definition on a CPU.
    """
    from xelm_kernels.ensemble_log_prob import ensemble_log_prob  # imports Triton

    result: Tensor = ensemble_log_prob(logits_ETV, log_w_TE, target_T)
    return result
