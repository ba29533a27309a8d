"""Log-probability of each target token under a weighted mixture of experts.

    out[t] = log sum_e exp( log_w[t, e] + logits[e, t, y_t] - lse[e, t] )

with lse[e, t] the log-sum-exp of expert e's logits over the vocabulary. The experts' [E, T, V] logits
are read once; no probability tensor is written.
Shape letters: E experts, T tokens, V vocabulary (padding columns may follow it in memory).
"""

import torch

from xelm_kernels.expert_rows import expert_rows, launch_on_slices, lse_of_slices
from xelm_kernels.optional_triton import tl, triton

# --- Reference -----------------------------------------------------------------


def ensemble_log_prob_ref(logits_ETV, log_w_TE, target_T):
    """The definition, in float64. Tests use it; keep it obvious."""
    log_p_ETV = torch.log_softmax(logits_ETV.double(), dim=-1)
    index = target_T.long().expand(log_p_ETV.shape[0], -1).unsqueeze(-1)
    log_p_ET = log_p_ETV.gather(-1, index).squeeze(-1)
    return torch.logsumexp(weighed(log_p_ET, log_w_TE), dim=0)


# --- Kernel --------------------------------------------------------------------


@triton.jit
def _log_prob_kernel(
    logits_ptr,
    log_w_ptr,
    target_ptr,
    parts_ptr,
    out_ptr,
    T,
    V,
    stride_e,
    stride_t,
    num_slices,
    E: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """One token of the formula, from the slices of its rows."""
    t = tl.program_id(0).to(tl.int64)
    e = tl.arange(0, BLOCK_E)
    log_w_E = tl.load(log_w_ptr + t * E + e, mask=e < E, other=-float("inf"))
    is_weighed_E = log_w_E != -float("inf")
    y = tl.load(target_ptr + t)
    is_word = (y >= 0) & (y < V)
    row_ptr_E = logits_ptr + e.to(tl.int64) * stride_e + t * stride_t
    x_E = tl.load(row_ptr_E + y, mask=is_weighed_E & is_word, other=-float("inf")).to(tl.float32)
    lse_E = lse_of_slices(parts_ptr, t, T, num_slices, e, E, BLOCK_S)
    x_E = tl.where(is_weighed_E, x_E - lse_E + log_w_E, -float("inf"))
    top = tl.max(x_E, 0)
    # a token that every expert forbids is all -inf; shifting by 0 keeps exp() off inf - inf
    shift = tl.where(top == -float("inf"), 0.0, top)
    mixed = shift + tl.log(tl.sum(tl.exp(x_E - shift), 0))
    tl.store(out_ptr + t, tl.where(is_word, mixed, float("nan")))


# --- Launch --------------------------------------------------------------------


def weighed(log_p, log_w_TE):
    """log_w + log_p, [E, T] or [E, T, V], and -inf where there is no weight, whatever the expert says."""
    log_w = log_w_TE.T.to(log_p.dtype)
    log_w = log_w.view(*log_w.shape, *[1] * (log_p.ndim - 2))
    return (log_p + log_w).masked_fill(log_w == -torch.inf, -torch.inf)


def check_inputs(name, logits_ETV, log_w_TE, target_T, vocab_size):
    """Refuse shapes that do not fit and inputs that want a gradient."""
    E, T, V = logits_ETV.shape
    if log_w_TE.shape != (T, E) or (target_T is not None and target_T.shape != (T,)):
        target = "" if target_T is None else f" and target [{T}]"
        found = "" if target_T is None else f" and {list(target_T.shape)}"
        raise ValueError(
            f"{name}: logits are [E={E}, T={T}, V={V}], so log_w must be "
            f"[{T}, {E}]{target}; got {list(log_w_TE.shape)}{found}."
        )
    if not 0 < vocab_size <= V:
        raise ValueError(
            f"{name}: vocab_size={vocab_size} does not fit logits of [E={E}, T={T}, V={V}]; "
            f"use a number from 1 to {V}."
        )
    if torch.is_grad_enabled() and (logits_ETV.requires_grad or log_w_TE.requires_grad):
        raise NotImplementedError(f"{name} has no backward; call it under torch.no_grad().")


def outside(target_T, vocab_size):
    """Where targets are no tokens. A GPU cannot raise, so their result becomes NaN there.

    Raises:
        ValueError: there is one, and it is on a CPU.
    """
    outside_T = (target_T < 0) | (target_T >= vocab_size)
    if not target_T.is_cuda and outside_T.any():
        t = int(outside_T.int().argmax())
        raise ValueError(
            f"ensemble_log_prob: target[{t}]={int(target_T[t])} is outside the vocabulary; "
            f"give token ids from 0 to {vocab_size - 1}."
        )
    return outside_T


def mix_rows(lse_ET, picked_ET, log_w_TE):
    """The mixture's log-probability of the targets, [T], from what `expert_rows` gives."""
    return torch.logsumexp(weighed(picked_ET - lse_ET, log_w_TE), dim=0)


def _launch(logits_ETV, log_w_TE, target_T, vocab_size=None):
    out_T = torch.empty(logits_ETV.shape[1], dtype=torch.float32, device=logits_ETV.device)
    logits_ETV = logits_ETV[..., :vocab_size]
    launch_on_slices(_log_prob_kernel, logits_ETV, log_w_TE, target_T.contiguous(), out_T)
    return out_T


# --- Public --------------------------------------------------------------------


def ensemble_log_prob(logits_ETV, log_w_TE, target_T, *, vocab_size=None):
    """Mixture log-probability of each target token. The formula is in the module docstring.

    Args:
        logits_ETV: every expert's logits, any floating dtype; -inf forbids a token.
        log_w_TE: log of the router's weights; -inf leaves an expert out, and its logits are not read.
        target_T: token ids, any integer dtype.
        vocab_size: columns of `logits_ETV` that are tokens; those after them are padding and are
            not read. None: all of them.

    Returns:
        Natural-log probabilities, float32 [T]; NaN where an expert with weight forbids every token.

    Raises:
        ValueError: shapes that do not fit each other, or, on a CPU, a target outside the vocabulary
            (on a GPU its result is NaN).
        NotImplementedError: an input needs a gradient; there is no backward.
    """
    vocab_size = logits_ETV.shape[-1] if vocab_size is None else vocab_size
    check_inputs("ensemble_log_prob", logits_ETV, log_w_TE, target_T, vocab_size)
    if logits_ETV.is_cuda:
        return _launch(logits_ETV, log_w_TE, target_T, vocab_size)
    outside_T = outside(target_T, vocab_size)
    rows = expert_rows(logits_ETV[..., :vocab_size].double(), log_w_TE, target_T)
    return mix_rows(*rows, log_w_TE).masked_fill(outside_T, torch.nan).float()
