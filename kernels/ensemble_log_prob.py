"""Log-probability of each target token under a weighted mixture of experts.

    out[t] = log sum_e exp( log_w[t, e] + logits[e, t, y_t] - lse[e, t] )

with lse[e, t] the log-sum-exp of expert e's logits over the vocabulary. The experts' [E, T, V] logits
are read once; no probability tensor is written.
Shape letters: E experts, T tokens, V vocabulary (padding columns may follow it in memory).
"""

import torch

from xelm_kernels.optional_triton import tl, triton

# --- Reference -----------------------------------------------------------------


def ensemble_log_prob_ref(logits_ETV, log_w_TE, target_T):
    """The definition, in float64. Tests and the CPU path use it; keep it obvious."""
    log_p_ETV = torch.log_softmax(logits_ETV.double(), dim=-1)
    index = target_T.long().expand(log_p_ETV.shape[0], -1).unsqueeze(-1)
    log_p_ET = log_p_ETV.gather(-1, index).squeeze(-1)
    return torch.logsumexp(log_p_ET + log_w_TE.double().T, dim=0)


# --- Kernel --------------------------------------------------------------------


@triton.jit
def _ensemble_log_prob_fwd_kernel(
    logits_ptr,
    log_w_ptr,
    target_ptr,
    out_ptr,
    V,
    stride_e,
    stride_t,
    E: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    # int64: E * T * V passes 2**31 at 16 experts, 1k tokens, a 256k vocabulary.
    t = tl.program_id(0).to(tl.int64)
    y = tl.load(target_ptr + t)
    y_is_valid = (y >= 0) & (y < V)
    # Moved on by one stride an expert: the product e * stride_e would be taken in int32.
    row_ptr = logits_ptr + t * stride_t

    mix_max = -float("inf")
    mix_sum = 0.0
    for e in range(E):
        row_max = -float("inf")
        row_sum = 0.0
        for start in range(0, V, BLOCK_V):
            v = start + tl.arange(0, BLOCK_V)
            x = tl.load(row_ptr + v, mask=v < V, other=-float("inf")).to(tl.float32)
            new_max = tl.maximum(row_max, tl.max(x, 0))
            # a block of forbidden tokens is all -inf; shifting by 0 keeps exp() off inf - inf
            shift = tl.where(new_max == -float("inf"), 0.0, new_max)
            row_sum = row_sum * tl.exp(row_max - shift) + tl.sum(tl.exp(x - shift), 0)
            row_max = new_max
        # The GPU cannot raise: a target outside the vocabulary gives NaN, not a stranger's logit.
        x_y = tl.load(row_ptr + y, mask=y_is_valid, other=float("nan")).to(tl.float32)
        term = x_y - row_max - tl.log(row_sum) + tl.load(log_w_ptr + t * E + e)
        new_max = tl.maximum(mix_max, term)
        shift = tl.where(new_max == -float("inf"), 0.0, new_max)  # as above: an expert of weight 0
        mix_sum = mix_sum * tl.exp(mix_max - shift) + tl.exp(term - shift)
        mix_max = new_max
        row_ptr += stride_e
    tl.store(out_ptr + t, mix_max + tl.log(mix_sum))


# --- Launch --------------------------------------------------------------------


def _check(logits_ETV, log_w_TE, target_T, vocab_size):
    E, T, V = logits_ETV.shape
    if log_w_TE.shape != (T, E) or target_T.shape != (T,):
        raise ValueError(
            f"ensemble_log_prob: logits are [E={E}, T={T}, V={V}], so log_w must be "
            f"[{T}, {E}] and target [{T}]; got {list(log_w_TE.shape)} and {list(target_T.shape)}."
        )
    if not 0 < vocab_size <= V:
        raise ValueError(
            f"ensemble_log_prob: vocab_size={vocab_size} does not fit logits of [E={E}, T={T}, V={V}]; "
            f"use a number from 1 to {V}."
        )
    if torch.is_grad_enabled() and (logits_ETV.requires_grad or log_w_TE.requires_grad):
        raise NotImplementedError("ensemble_log_prob has no backward; call it under torch.no_grad().")


def _check_target(target_T, vocab_size):
    outside_T = (target_T < 0) | (target_T >= vocab_size)
    if outside_T.any():
        t = int(outside_T.int().argmax())
        raise ValueError(
            f"ensemble_log_prob: target[{t}]={int(target_T[t])} is outside the vocabulary; "
            f"give token ids from 0 to {vocab_size - 1}."
        )


def _launch(logits_ETV, log_w_TE, target_T, vocab_size=None):
    E, T, V = logits_ETV.shape
    V = V if vocab_size is None else vocab_size
    logits_ETV = logits_ETV if logits_ETV.stride(-1) == 1 else logits_ETV.contiguous()
    out_T = torch.empty(T, dtype=torch.float32, device=logits_ETV.device)
    if T == 0:  # a grid may not be empty
        return out_T
    _ensemble_log_prob_fwd_kernel[(T,)](
        logits_ETV,
        log_w_TE.float().contiguous(),
        target_T.contiguous(),
        out_T,
        V,
        logits_ETV.stride(0),
        logits_ETV.stride(1),
        E=E,
        BLOCK_V=min(4096, triton.next_power_of_2(V)),
    )
    return out_T


# --- Public --------------------------------------------------------------------


def ensemble_log_prob(logits_ETV, log_w_TE, target_T, *, vocab_size=None):
    """Mixture log-probability of each target token. The formula is in the module docstring.

    Args:
        logits_ETV: every expert's logits, any floating dtype; -inf forbids a token.
        log_w_TE: log of the router's weights; -inf leaves an expert out.
        target_T: token ids, any integer dtype.
        vocab_size: columns of `logits_ETV` that are tokens; those after them are padding and are
            not read. None: all of them.

    Returns:
        Natural-log probabilities, float32 [T], computed in float64 on a CPU and float32 on a GPU.

    Raises:
        ValueError: shapes that do not fit each other, or, on a CPU, a target outside the vocabulary
            (on a GPU its result is NaN).
        NotImplementedError: an input needs a gradient; there is no backward.
    """
    vocab_size = logits_ETV.shape[-1] if vocab_size is None else vocab_size
    _check(logits_ETV, log_w_TE, target_T, vocab_size)
    if logits_ETV.is_cuda:
        return _launch(logits_ETV, log_w_TE, target_T, vocab_size)
    _check_target(target_T, vocab_size)
    return ensemble_log_prob_ref(logits_ETV[..., :vocab_size], log_w_TE, target_T).float()
