"""The experts' probabilities become one: p(y) = sum_e w_e p_e(y).

Shape letters: E experts, T tokens, V vocabulary.
"""

import torch
import torch.distributed as dist
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


def target_log_prob(
    logits_ETV: Tensor,
    log_w_TE: Tensor,
    target_T: Tensor,
    *,
    vocab_size: int | None = None,
    tp_group: dist.ProcessGroup | None = None,
) -> Tensor:
    """The same mixture straight from the logits, for when all experts' logits are in memory at once.

    Where every expert is scored alone and mixed in many ways, as evaluation does, `mixture_log_prob`
    costs less.

    Args:
        logits_ETV: raw logits, [E, T, V]; under tensor parallelism this rank's columns, equally many on each.
        log_w_TE: log-weights, [T, E]; -inf leaves an expert out.
        target_T: ids of the target tokens in the whole vocabulary, [T].
        vocab_size: columns of the whole vocabulary that are tokens, the others being padding; None: all.
        tp_group: the ranks that hold the other columns, in order.

    Returns:
        nats, float32 [T], the same on every rank; Triton kernels on a GPU, float64 on a CPU.

    Raises:
        ValueError: shapes that do not fit; on a CPU, a target outside the vocabulary (on a GPU it gives NaN).
        NotImplementedError: an input needs a gradient.
    """
    from xelm_kernels import ensemble_log_prob as kernel  # imports Triton

    if tp_group is None:
        mixed: Tensor = kernel.ensemble_log_prob(logits_ETV, log_w_TE, target_T, vocab_size=vocab_size)
        return mixed
    kernel.check_inputs("target_log_prob", logits_ETV, log_w_TE, target_T, logits_ETV.shape[-1])
    whole = logits_ETV.shape[-1] * tp_group.size() if vocab_size is None else vocab_size
    outside_T = kernel.outside(target_T, whole)
    first = logits_ETV.shape[-1] * tp_group.rank()
    lse_ET, picked_ET = _own_rows(logits_ETV, log_w_TE, target_T - first, whole - first)
    lse_ET = _over_ranks(lse_ET, tp_group).logsumexp(0)
    picked_ET = _over_ranks(picked_ET, tp_group).amax(0)  # -inf from every rank that has not the target
    mixed = kernel.mix_rows(lse_ET, picked_ET, log_w_TE)
    return mixed.masked_fill(outside_T, torch.nan).float()


def next_log_probs(
    logits_ETV: Tensor,
    log_w_TE: Tensor,
    *,
    vocab_size: int | None = None,
    tp_group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Log-probability of every token of the vocabulary under the mixture.

    Args:
        logits_ETV: raw logits, [E, T, V]; under tensor parallelism this rank's columns, equally many on each.
        log_w_TE: log-weights, [T, E]; -inf leaves an expert out.
        vocab_size: columns of the whole vocabulary that are tokens, the others being padding; None: all.
        tp_group: the ranks that hold the other columns, in order.

    Returns:
        nats, float32 [T, vocab_size], or the columns of them that this rank holds.

    Raises:
        ValueError: shapes that do not fit.
        NotImplementedError: an input needs a gradient.
    """
    from xelm_kernels.ensemble_mixture import ensemble_mixture  # imports Triton

    if tp_group is None:
        mixed: Tensor = ensemble_mixture(logits_ETV, log_w_TE, vocab_size=vocab_size)
        return mixed
    width = logits_ETV.shape[-1]
    whole = width * tp_group.size() if vocab_size is None else vocab_size
    own = min(max(whole - width * tp_group.rank(), 0), width)
    lse_ET, _ = _own_rows(logits_ETV, log_w_TE, None, own)
    lse_ET = _over_ranks(lse_ET, tp_group).logsumexp(0)
    if own == 0:
        return lse_ET.new_empty(len(log_w_TE), 0, dtype=torch.float32)
    mixed = ensemble_mixture(logits_ETV, log_w_TE, vocab_size=own, lse_ET=lse_ET)
    return mixed


def _own_rows(
    logits_ETV: Tensor, log_w_TE: Tensor, column_T: Tensor | None, num_words: int
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp and target's logit among this rank's columns, [E, T]; -inf where it has none."""
    from xelm_kernels.expert_rows import expert_rows

    wide = logits_ETV if logits_ETV.is_cuda else logits_ETV.double()
    nothing_ET = torch.full_like(log_w_TE.T, -torch.inf, dtype=torch.promote_types(wide.dtype, torch.float32))
    if num_words <= 0:  # a rank may hold nothing but padding
        return nothing_ET, nothing_ET
    lse_ET, picked_ET = expert_rows(wide[..., :num_words], log_w_TE, column_T)
    return lse_ET, nothing_ET if picked_ET is None else picked_ET


def _over_ranks(value: Tensor, group: dist.ProcessGroup) -> Tensor:
    gathered = [torch.empty_like(value, memory_format=torch.contiguous_format) for _ in range(group.size())]
    dist.all_gather(gathered, value.contiguous(), group=group)
    return torch.stack(gathered)
