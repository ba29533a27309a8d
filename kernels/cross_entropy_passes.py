"""Two passes over logits, each reading them once: what the loss needs of a row, and the row's gradient.

    moments[t] = ( max_v x[t, v],  sum_v exp( x[t, v] - max[t] ),  x[t, target[t]] )
    x[t, v]   <- ( exp( x[t, v] - max[t] ) / sum[t] - [v = target[t]] ) * grad[t]

Nothing as large as the logits is written beside them: the gradient takes their place. Max and sum stay
apart because exp(x - max) / sum is exact for the likeliest word, where exp(x - log-sum-exp) is not.
Shape letters: C tokens; V columns of the logits, of which the first `num_words` are words and the others
padding. A target outside these words is another tensor-parallel rank's.
"""

import torch

from xelm_kernels.optional_triton import tl, triton

# --- Plain torch: the definition of each pass, and what runs on a CPU --------------


def moments_plain(logits_CV, target_C, num_words):
    """Max, sum of exponentials and target's logit of each row, [3, C]; the last is 0 on other ranks."""
    x_CV = _without_padding(logits_CV, num_words)
    max_C = x_CV.amax(-1)
    shift_C = max_C.masked_fill(max_C == -torch.inf, 0.0)  # a rank may hold nothing but padding
    sum_C = (x_CV - shift_C[:, None]).exp_().sum(-1)
    column_C, is_here_C = _target_column(target_C, num_words)
    x_y_C = x_CV.gather(-1, column_C[:, None])[:, 0].masked_fill(~is_here_C, 0.0)
    return torch.stack([max_C, sum_C, x_y_C])


def gradient_plain(logits_CV, target_C, moments_3C, grad_C, num_words):
    """Put the gradient of the logits in their place; that of padding is 0."""
    p_CV = _without_padding(logits_CV, num_words)
    p_CV.sub_(moments_3C[0, :, None]).exp_().div_(moments_3C[1, :, None])
    column_C, is_here_C = _target_column(target_C, num_words)
    p_CV[torch.arange(len(target_C), device=target_C.device), column_C] -= is_here_C.to(p_CV.dtype)
    logits_CV.copy_(p_CV.mul_(grad_C[:, None]))


def sum_dtype(tensor):
    """What sums over a tensor's elements are kept in: float32, or float64 for float64."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _without_padding(logits_CV, num_words):
    column_V = torch.arange(logits_CV.shape[1], device=logits_CV.device)
    return logits_CV.to(sum_dtype(logits_CV)).masked_fill(column_V >= num_words, -torch.inf)


def _target_column(target_C, num_words):
    is_here_C = (target_C >= 0) & (target_C < num_words)
    return target_C.clamp(0, max(num_words - 1, 0)), is_here_C


# --- Kernels -------------------------------------------------------------------


@triton.jit
def _moments_kernel(
    logits_ptr,
    target_ptr,
    moments_ptr,
    num_tokens,
    num_words,
    stride_t,
    BLOCK_V: tl.constexpr,
):
    # int64: C * V passes 2**31 at 8k tokens of a 256k vocabulary.
    t = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + t * stride_t
    row_max = -float("inf")
    row_sum = 0.0
    for start in range(0, num_words, BLOCK_V):
        v = start + tl.arange(0, BLOCK_V)
        x = tl.load(row_ptr + v, mask=v < num_words, other=-float("inf")).to(tl.float32)
        new_max = tl.maximum(row_max, tl.max(x, 0))
        # a block of forbidden words is all -inf; shifting by 0 keeps exp() off inf - inf
        shift = tl.where(new_max == -float("inf"), 0.0, new_max)
        row_sum = row_sum * tl.exp(row_max - shift) + tl.sum(tl.exp(x - shift), 0)
        row_max = new_max
    y = tl.load(target_ptr + t)
    x_y = tl.load(row_ptr + y, mask=(y >= 0) & (y < num_words), other=0.0).to(tl.float32)
    tl.store(moments_ptr + t, row_max)
    tl.store(moments_ptr + num_tokens + t, row_sum)
    tl.store(moments_ptr + 2 * num_tokens + t, x_y)


@triton.jit
def _gradient_kernel(
    logits_ptr,
    target_ptr,
    max_ptr,
    sum_ptr,
    grad_ptr,
    num_words,
    V,
    stride_t,
    BLOCK_V: tl.constexpr,
):
    t = tl.program_id(0).to(tl.int64)
    v = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    ptr = logits_ptr + t * stride_t + v
    x = tl.load(ptr, mask=v < num_words, other=-float("inf")).to(tl.float32)
    p = tl.exp(x - tl.load(max_ptr + t)) * (1.0 / tl.load(sum_ptr + t))
    g = tl.where(v == tl.load(target_ptr + t), p - 1.0, p) * tl.load(grad_ptr + t)
    tl.store(ptr, g.to(logits_ptr.dtype.element_ty), mask=v < V)


# --- Launch --------------------------------------------------------------------


def launch_moments(logits_CV, target_C, num_words):
    """`moments_plain` by a kernel, one program a row."""
    C, V = logits_CV.shape
    moments_3C = torch.empty(3, C, dtype=torch.float32, device=logits_CV.device)
    _moments_kernel[(C,)](
        *(logits_CV, target_C, moments_3C, C, num_words, logits_CV.stride(0)),
        BLOCK_V=min(8192, triton.next_power_of_2(V)),
        num_warps=8,
    )
    return moments_3C


def launch_gradient(logits_CV, target_C, moments_3C, grad_C, num_words):
    """`gradient_plain` by a kernel, one program a block of a row."""
    C, V = logits_CV.shape
    block_v = min(4096, triton.next_power_of_2(V))
    max_C, sum_C = moments_3C[0].contiguous(), moments_3C[1].contiguous()
    _gradient_kernel[(C, triton.cdiv(V, block_v))](
        *(logits_CV, target_C, max_C, sum_C, grad_C.contiguous(), num_words, V, logits_CV.stride(0)),
        BLOCK_V=block_v,
        num_warps=8,
    )


# --- Public --------------------------------------------------------------------


def moments(logits_CV, target_C, num_words):
    """Max, sum of exponentials and target's logit of each row, [3, C], in float32 or wider."""
    return (launch_moments if logits_CV.is_cuda else moments_plain)(logits_CV, target_C, num_words)


def logits_to_gradient(logits_CV, target_C, moments_3C, grad_C, num_words):
    """Put the gradient of the logits in their place; `moments_3C` is of the whole vocabulary."""
    fill = launch_gradient if logits_CV.is_cuda else gradient_plain
    fill(logits_CV, target_C, moments_3C, grad_C, num_words)
