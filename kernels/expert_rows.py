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


# --- Kernels -------------------------------------------------------------------

_LOG2_E = tl.constexpr(1.4426950408889634)
_LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _slices_kernel(
    logits_ptr,
    log_w_ptr,
    parts_ptr,
    E,
    T,
    units_v,
    units_e,
    units_t,
    UNIT: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """Of a slice of one row, its maximum m and the sum of exp(x - m)."""
    V = units_v * UNIT
    SLICE: tl.constexpr = BLOCK_V * BLOCKS
    num_slices = tl.cdiv(V, SLICE)
    # int64: E * T * V passes 2**31 at 16 experts, 1k tokens, a 256k vocabulary.
    row = (tl.program_id(0) // num_slices).to(tl.int64)
    e, t = row // T, row % T
    row_ptr = logits_ptr + e * units_e * UNIT + t * units_t * UNIT
    first = (tl.program_id(0) % num_slices) * SLICE
    is_weighed = tl.load(log_w_ptr + t * E + e) != -float("inf")
    end = tl.where(is_weighed, tl.minimum(first + SLICE, V), first)

    # A thread reads 8 logits at once. Maxima are those of such lanes: threads that have to agree on one
    # wait for each other in every turn.
    lane_8 = tl.arange(0, BLOCK_V // 8)[:, None] * 8 + tl.arange(0, 8)[None, :]
    max_L = tl.full([BLOCK_V // 8], -float("inf"), tl.float32)
    sum_L = tl.zeros([BLOCK_V // 8], tl.float32)
    for start in range(first, end, BLOCK_V):
        v = start + lane_8
        x = tl.load(row_ptr + v, mask=v < end, other=-float("inf")).to(tl.float32)
        new_max_L = tl.maximum(max_L, tl.max(x, 1))
        # a lane of forbidden tokens is all -inf; shifting by 0 keeps exp() off inf - inf
        shift_L = tl.where(new_max_L == -float("inf"), 0.0, new_max_L)
        part_L = tl.sum(tl.exp2((x - shift_L[:, None]) * _LOG2_E), 1)
        sum_L = sum_L * tl.exp2((max_L - shift_L) * _LOG2_E) + part_L
        max_L = new_max_L
    top = tl.max(max_L, 0)
    shift = tl.where(top == -float("inf"), 0.0, top)
    place = tl.program_id(0).to(tl.int64)
    tl.store(parts_ptr + place, top)
    tl.store(parts_ptr + tl.num_programs(0) + place, tl.sum(sum_L * tl.exp2((max_L - shift) * _LOG2_E), 0))


@triton.jit
def lse_of_slices(parts_ptr, t, T, num_slices, e, E: tl.constexpr, BLOCK_S: tl.constexpr):
    """The log-sum-exps of a token's rows, [BLOCK_E], from their slices' maxima and sums."""
    s = tl.arange(0, BLOCK_S)
    place = (e[:, None].to(tl.int64) * T + t) * num_slices + s[None, :]
    mask = (e < E)[:, None] & (s < num_slices)[None, :]
    max_ES = tl.load(parts_ptr + place, mask=mask, other=-float("inf"))
    sums_ptr = parts_ptr + T * E * num_slices
    sum_ES = tl.load(sums_ptr + place, mask=mask, other=0.0)
    top_E = tl.max(max_ES, 1)
    shift_E = tl.where(top_E == -float("inf"), 0.0, top_E)
    # A NaN among the logits is in a sum and has to come out.
    total_E = tl.sum(sum_ES * tl.exp2((max_ES - shift_E[:, None]) * _LOG2_E), 1)
    log_E = tl.log2(tl.where(total_E == 0, 1.0, total_E)) * _LN_2
    return tl.where(total_E == 0, -float("inf"), shift_E + log_E)


@triton.jit
def _rows_kernel(
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
    HAS_TARGET: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    t = tl.program_id(0).to(tl.int64)
    e = tl.arange(0, BLOCK_E)
    lse_E = lse_of_slices(parts_ptr, t, T, num_slices, e, E, BLOCK_S)
    tl.store(out_ptr + e * T + t, lse_E, mask=e < E)
    if HAS_TARGET:
        y = tl.load(target_ptr + t)
        is_column = (y >= 0) & (y < V)
        log_w_E = tl.load(log_w_ptr + t * E + e, mask=e < E, other=-float("inf"))
        is_weighed_E = log_w_E != -float("inf")
        row_ptr_E = logits_ptr + e.to(tl.int64) * stride_e + t * stride_t
        x_E = tl.load(row_ptr_E + y, mask=is_weighed_E & is_column, other=-float("inf"))
        tl.store(out_ptr + (E + e) * T + t, x_E.to(tl.float32), mask=e < E)


# --- Launch --------------------------------------------------------------------


def common_unit(*sizes):
    """8 if all sizes are multiples of it, else 1.

    Triton reads single elements unless it sees that rows begin, and masks end, at multiples of more. It looks
    for multiples of 16 by itself, and a vocabulary of 256,008 words is none.
    """
    return 1 if any(size % 8 for size in sizes) else 8


def launch_slices(logits_ETV, log_w_TE, *, block_v=4096, blocks=4, num_warps=8):
    """Maxima and sums of the rows' slices, [2, E, T, slices]: one program a slice, whatever the batch."""
    E, T, V = logits_ETV.shape
    sizes = V, logits_ETV.stride(0), logits_ETV.stride(1)
    unit = common_unit(*sizes)
    num_slices = triton.cdiv(V, block_v * blocks)
    parts = torch.empty(2, E, T, num_slices, dtype=torch.float32, device=logits_ETV.device)
    _slices_kernel[(E * T * num_slices,)](
        logits_ETV,
        log_w_TE,
        parts,
        *(E, T, *(size // unit for size in sizes)),
        UNIT=unit,
        BLOCK_V=block_v,
        BLOCKS=blocks,
        num_warps=num_warps,
    )
    return parts


def launch_on_slices(kernel, logits_ETV, log_w_TE, target_T, out, *, slices=None, **constants):
    """`launch_slices`, and behind it a kernel of what they give together, a program for each token."""
    E, T, V = logits_ETV.shape
    if T == 0:  # a grid may not be empty
        return
    logits_ETV = logits_ETV if logits_ETV.stride(-1) == 1 else logits_ETV.contiguous()
    log_w_TE = log_w_TE.float().contiguous()
    parts = launch_slices(logits_ETV, log_w_TE, **slices or {})
    kernel[(T,)](
        logits_ETV,
        log_w_TE,
        target_T,
        parts,
        out,
        *(T, V, logits_ETV.stride(0), logits_ETV.stride(1), parts.shape[-1]),
        E=E,
        BLOCK_E=triton.next_power_of_2(E),
        BLOCK_S=triton.next_power_of_2(parts.shape[-1]),
        num_warps=1,
        **constants,
    )


def launch_expert_rows(logits_ETV, log_w_TE, target_T=None, **slices):
    """`expert_rows_plain` by kernels: slices of rows, then what they give together."""
    E, T, _ = logits_ETV.shape
    out_2ET = torch.empty(2, E, T, dtype=torch.float32, device=logits_ETV.device)
    has_target = target_T is not None
    target_T = target_T.contiguous() if has_target else log_w_TE  # which is then not read
    launch_on_slices(
        _rows_kernel, logits_ETV, log_w_TE, target_T, out_2ET, slices=slices, HAS_TARGET=has_target
    )
    return out_2ET[0], out_2ET[1] if has_target else None


# --- Public --------------------------------------------------------------------


def expert_rows(logits_ETV, log_w_TE, target_T=None):
    """Log-sum-exp and target's logit of each expert at each token, both [E, T]; see the module docstring.

    Both are -inf where the expert has no weight; a target that is no column picks -inf. Without targets
    the second is None. Inputs are those of `ensemble_log_prob`, already checked.
    """
    rows = launch_expert_rows if logits_ETV.is_cuda else expert_rows_plain
    return rows(logits_ETV, log_w_TE, target_T)
