"""What every mixture needs of each expert's row of logits: its log-sum-exp, and the target's logit.

    lse[e, t] = log sum_v exp( logits[e, t, v] )        picked[e, t] = logits[e, t, y_t]

The logits are read once, and those of experts without weight not at all.
Shape letters: E experts, T tokens, V vocabulary (padding columns may follow it in memory; under tensor
parallelism this rank's part of it).
"""

import torch

from xelm_kernels.optional_triton import tl, triton

# --- Plain torch: the definition, and what runs on a CPU ------------------------


def expert_rows_plain(logits_ETV, log_w_TE, target_T=None):
    """lse and picked, [E, T], in float32 or wider. A target that is not among the columns picks -inf."""
    x_ETV = logits_ETV.to(torch.promote_types(logits_ETV.dtype, torch.float32))
    left_out_ET = -torch.inf == log_w_TE.T
    lse_ET = torch.logsumexp(x_ETV, -1).masked_fill(left_out_ET, -torch.inf)
    if target_T is None:
        return lse_ET, None
    is_here_T = (target_T >= 0) & (target_T < x_ETV.shape[-1])
    column_T = torch.where(is_here_T, target_T, 0).long()
    picked_ET = x_ETV.gather(-1, column_T.expand(len(x_ETV), -1)[..., None])[..., 0]
    return lse_ET, picked_ET.masked_fill(~is_here_T | left_out_ET, -torch.inf)


# --- Kernel --------------------------------------------------------------------


@triton.jit
def _expert_rows_kernel(
    logits_ptr,
    log_w_ptr,
    target_ptr,
    out_ptr,
    E,
    T,
    units_v,
    units_e,
    units_t,
    UNIT: tl.constexpr,
    HAS_TARGET: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    V = units_v * UNIT
    # int64: E * T * V passes 2**31 at 16 experts, 1k tokens, a 256k vocabulary.
    row = tl.program_id(0).to(tl.int64)
    e, t = row // T, row % T
    row_ptr = logits_ptr + e * units_e * UNIT + t * units_t * UNIT
    is_weighed = tl.load(log_w_ptr + t * E + e) != -float("inf")
    end = tl.where(is_weighed, V, 0)

    row_max = -float("inf")
    # A sum for each lane: only the maximum has to be known to all of them at every step.
    sum_V = tl.zeros([BLOCK_V], tl.float32)
    for start in range(0, end, BLOCK_V):
        v = start + tl.arange(0, BLOCK_V)
        x = tl.load(row_ptr + v, mask=v < V, other=-float("inf")).to(tl.float32)
        new_max = tl.maximum(row_max, tl.max(x, 0))
        # a block of forbidden tokens is all -inf; shifting by 0 keeps exp() off inf - inf
        shift = tl.where(new_max == -float("inf"), 0.0, new_max)
        sum_V = sum_V * tl.exp(row_max - shift) + tl.exp(x - shift)
        row_max = new_max
    total = tl.sum(sum_V, 0)
    has_any = total > 0
    lse = tl.where(has_any, row_max + tl.log(tl.where(has_any, total, 1.0)), -float("inf"))
    # A NaN among the logits is in the total and has to come out.
    tl.store(out_ptr + row, tl.where(total != total, total, lse))
    if HAS_TARGET:
        y = tl.load(target_ptr + t)
        x_y = tl.load(row_ptr + y, mask=is_weighed & (y >= 0) & (y < V), other=-float("inf"))
        tl.store(out_ptr + tl.num_programs(0).to(tl.int64) + row, x_y.to(tl.float32))


# --- Launch --------------------------------------------------------------------


def common_unit(*sizes):
    """8 if all sizes are multiples of it, else 1.

    Triton reads single elements unless it sees that rows begin, and masks end, at multiples of more. It looks
    for multiples of 16 by itself, and a vocabulary of 256,008 words is none.
    """
    return 1 if any(size % 8 for size in sizes) else 8


def launch_expert_rows(logits_ETV, log_w_TE, target_T=None, *, block_v=8192, num_warps=8):
    """`expert_rows_plain` by a kernel, one program a row."""
    E, T, V = logits_ETV.shape
    logits_ETV = logits_ETV if logits_ETV.stride(-1) == 1 else logits_ETV.contiguous()
    sizes = V, logits_ETV.stride(0), logits_ETV.stride(1)
    unit = common_unit(*sizes)
    out_2ET = torch.empty(2, E, T, dtype=torch.float32, device=logits_ETV.device)
    if T > 0:  # a grid may not be empty
        _expert_rows_kernel[(E * T,)](
            logits_ETV,
            log_w_TE.float().contiguous(),
            log_w_TE if target_T is None else target_T.contiguous(),
            out_2ET,
            *(E, T, *(size // unit for size in sizes)),
            UNIT=unit,
            HAS_TARGET=target_T is not None,
            BLOCK_V=min(block_v, triton.next_power_of_2(V)),
            num_warps=num_warps,
        )
    return out_2ET[0], None if target_T is None else out_2ET[1]


# --- Public --------------------------------------------------------------------


def expert_rows(logits_ETV, log_w_TE, target_T=None):
    """Log-sum-exp and target's logit of each expert at each token, both [E, T]; see the module docstring.

    Both are -inf where the expert has no weight; a target that is no column picks -inf. Without targets
    the second is None. Inputs are those of `ensemble_log_prob`, already checked.
    """
    rows = launch_expert_rows if logits_ETV.is_cuda else expert_rows_plain
    return rows(logits_ETV, log_w_TE, target_T)
