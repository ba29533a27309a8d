"""The next-token distribution of a weighted mixture of experts, as log-probabilities of the whole vocabulary.

    out[t, v] = log sum_e exp( log_w[t, e] + logits[e, t, v] - lse[e, t] )

with lse[e, t] the log-sum-exp of expert e's logits. The logits are read twice, once for lse and once for the
mixture, and nothing as large as they are is written: only the [T, V] result.
Shape letters: E experts, T tokens, V vocabulary (padding columns may follow it in memory; under tensor
parallelism this rank's part of it).
"""

import torch

from xelm_kernels.ensemble_log_prob import check_inputs, weighed
from xelm_kernels.expert_rows import common_unit, expert_rows, launch_expert_rows
from xelm_kernels.optional_triton import tl, triton

# --- Reference -----------------------------------------------------------------


def ensemble_mixture_ref(logits_ETV, log_w_TE):
    """The definition, in float64. Tests use it; keep it obvious."""
    log_p_ETV = torch.log_softmax(logits_ETV.double(), dim=-1)
    log_w_ET1 = log_w_TE.T.double()[..., None]
    return torch.logsumexp((log_p_ETV + log_w_ET1).masked_fill(log_w_ET1 == -torch.inf, -torch.inf), dim=0)


# --- Kernel --------------------------------------------------------------------


@triton.jit
def _mixture_kernel(
    logits_ptr,
    lse_ptr,
    log_w_ptr,
    out_ptr,
    T,
    units_v,
    units_e,
    units_t,
    UNIT: tl.constexpr,
    E: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    V = units_v * UNIT
    num_blocks = tl.cdiv(V, BLOCK_V)
    t = (tl.program_id(0) // num_blocks).to(tl.int64)
    v = (tl.program_id(0) % num_blocks) * BLOCK_V + tl.arange(0, BLOCK_V)
    e = tl.arange(0, BLOCK_E)
    log_w = tl.load(log_w_ptr + t * E + e, mask=e < E, other=-float("inf"))
    is_weighed = log_w != -float("inf")
    offset = tl.where(is_weighed, log_w - tl.load(lse_ptr + e * T + t, mask=e < E, other=0.0), -float("inf"))
    mask = is_weighed[:, None] & (v < V)[None, :]  # an expert without weight is not read
    # int64: 16 experts, 1k tokens and a 256k vocabulary pass 2**31.
    row_ptr = logits_ptr + t * units_t * UNIT + e.to(tl.int64) * units_e * UNIT
    where = row_ptr[:, None] + v[None, :]
    x = tl.load(where, mask=mask, other=-float("inf")).to(tl.float32) + offset[:, None]
    top = tl.max(x, 0)
    # a token that every expert forbids is all -inf; shifting by 0 keeps exp() off inf - inf
    shift = tl.where(top == -float("inf"), 0.0, top)
    total = tl.sum(tl.exp(x - shift[None, :]), 0)
    tl.store(out_ptr + t * V + v, shift + tl.log(total), mask=v < V)


# --- Launch --------------------------------------------------------------------


def launch_mixture(logits_ETV, log_w_TE, lse_ET, *, block_v=1024, num_warps=4):
    """The second pass by a kernel: one program a token and a block of the vocabulary."""
    E, T, V = logits_ETV.shape
    logits_ETV = logits_ETV if logits_ETV.stride(-1) == 1 else logits_ETV.contiguous()
    sizes = V, logits_ETV.stride(0), logits_ETV.stride(1)
    unit = common_unit(*sizes)
    out_TV = torch.empty(T, V, dtype=torch.float32, device=logits_ETV.device)
    if T > 0:  # a grid may not be empty
        block_v = min(block_v, triton.next_power_of_2(V))
        _mixture_kernel[(T * triton.cdiv(V, block_v),)](
            logits_ETV,
            lse_ET.float().contiguous(),
            log_w_TE.float().contiguous(),
            out_TV,
            *(T, *(size // unit for size in sizes)),
            UNIT=unit,
            E=E,
            BLOCK_E=triton.next_power_of_2(E),
            BLOCK_V=block_v,
            num_warps=num_warps,
        )
    return out_TV


def _launch(logits_ETV, log_w_TE, vocab_size=None):
    logits_ETV = logits_ETV[..., :vocab_size]
    return launch_mixture(logits_ETV, log_w_TE, launch_expert_rows(logits_ETV, log_w_TE)[0])


# --- Public --------------------------------------------------------------------


def ensemble_mixture(logits_ETV, log_w_TE, *, vocab_size=None, lse_ET=None):
    """Log-probability of every token under the mixture. The formula is in the module docstring.

    Args:
        logits_ETV: every expert's logits, any floating dtype; -inf forbids a token.
        log_w_TE: log of the router's weights; -inf leaves an expert out, and its logits are not read.
        vocab_size: columns of `logits_ETV` that are tokens; those after them are padding and are
            not read. None: all of them.
        lse_ET: log-sum-exp of each expert over the whole vocabulary, where the columns are only a part of it.

    Returns:
        Natural-log probabilities, float32 [T, vocab_size].

    Raises:
        ValueError: shapes that do not fit each other.
        NotImplementedError: an input needs a gradient; there is no backward.
    """
    vocab_size = logits_ETV.shape[-1] if vocab_size is None else vocab_size
    check_inputs("ensemble_mixture", logits_ETV, log_w_TE, None, vocab_size)
    if logits_ETV.is_cuda:
        logits_ETV = logits_ETV[..., :vocab_size]
        lse_ET = expert_rows(logits_ETV, log_w_TE)[0] if lse_ET is None else lse_ET
        return launch_mixture(logits_ETV, log_w_TE, lse_ET)
    logits_ETV = logits_ETV[..., :vocab_size].double()
    lse_ET = expert_rows(logits_ETV, log_w_TE)[0] if lse_ET is None else lse_ET
    mixed_ETV = weighed(logits_ETV - lse_ET[..., None], log_w_TE)
    return torch.logsumexp(mixed_ETV, dim=0).float()
