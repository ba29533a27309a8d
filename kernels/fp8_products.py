"""The head's three matrix products in FP8, for `linear_cross_entropy`.

    logits = X W^T        dX = G W        dW += G^T X        X, W in E4M3, G in E5M2

Each tensor has one scale: that of X and W from its largest element, that of G from the largest gradient of
a loss, for |p - [v = y]| is at most 1. Hopper multiplies FP8 matrices only along their rows, so X, W and G
are written twice, as they are and transposed, each by one kernel that reads its source once. Sums over the
hidden size may be the tensor cores' fast ones; those over words and tokens are longer and are not.

Shape letters: T tokens, C tokens of a chunk, V rows of the weight, H hidden; M, N, K of any matrix.
"""

from typing import NamedTuple

import torch

from xelm_kernels.optional_triton import tl, triton

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
E4M3_MAX = 448.0
GRADIENT_MAX = 2.0**15  # below E5M2's 57,344, and a power of two: nothing is rounded by the scale
ROWS = 2**15  # of the weight's gradient that are in memory beside it
ALIGNMENT = 16  # every size of an FP8 product is a multiple of it


class FP8Matrix(NamedTuple):
    """x = rows * inverse, twice: rows_MN and its transpose; `inverse` is a scalar on the device."""

    rows_MN: torch.Tensor
    rows_NM: torch.Tensor
    inverse: torch.Tensor


# --- Plain torch: the definition, and what runs on a CPU ---------------------------


def quantise_plain(x_MN, scale):
    """E4M3 of x * scale, and its transpose."""
    rows_MN = (x_MN.float() * scale).clamp(-E4M3_MAX, E4M3_MAX).to(E4M3)
    return rows_MN, rows_MN.t().contiguous()


def gradient_plain(logits_CV, target_C, moments_3C, grad_C, num_words):
    """E5M2 of the gradient of the logits where grad is scaled already, and its transpose."""
    column_V = torch.arange(logits_CV.shape[1], device=logits_CV.device)
    p_CV = (logits_CV.float() - moments_3C[0, :, None]).exp() / moments_3C[1, :, None]
    p_CV.masked_fill_(column_V >= num_words, 0.0)
    p_CV -= (column_V == target_C[:, None]).float()
    rows_CV = (p_CV * grad_C[:, None]).to(E5M2)
    return rows_CV, rows_CV.t().contiguous()


# --- Kernels -------------------------------------------------------------------


@triton.jit
def _quantise_kernel(
    x_ptr, rows_ptr, transposed_ptr, scale_ptr, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_inside = (m < M)[:, None] & (n < N)[None, :]
    x = tl.load(x_ptr + m[:, None] * N + n[None, :], mask=is_inside, other=0.0).to(tl.float32)
    q = tl.clamp(x * tl.load(scale_ptr), -448.0, 448.0).to(rows_ptr.dtype.element_ty)
    tl.store(rows_ptr + m[:, None] * N + n[None, :], q, mask=is_inside)
    is_inside = (n < N)[:, None] & (m < M)[None, :]
    tl.store(transposed_ptr + n[:, None] * M + m[None, :], tl.trans(q), mask=is_inside)


@triton.jit
def _gradient_kernel(
    logits_ptr,
    target_ptr,
    max_ptr,
    sum_ptr,
    grad_ptr,
    rows_ptr,
    transposed_ptr,
    C,
    V,
    num_words,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    c = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    v = tl.program_id(1).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    is_row = c < C
    is_word = is_row[:, None] & (v < num_words)[None, :]
    x = tl.load(logits_ptr + c[:, None] * V + v[None, :], mask=is_word, other=-float("inf")).to(tl.float32)
    row_max = tl.load(max_ptr + c, mask=is_row, other=0.0)
    row_scale = 1.0 / tl.load(sum_ptr + c, mask=is_row, other=1.0)
    target = tl.load(target_ptr + c, mask=is_row, other=-1)
    grad = tl.load(grad_ptr + c, mask=is_row, other=0.0)
    p = tl.exp(x - row_max[:, None]) * row_scale[:, None]
    g = tl.where(v[None, :] == target[:, None], p - 1.0, p) * grad[:, None]
    q = g.to(rows_ptr.dtype.element_ty)
    is_inside = is_row[:, None] & (v < V)[None, :]
    tl.store(rows_ptr + c[:, None] * V + v[None, :], q, mask=is_inside)
    is_inside = (v < V)[:, None] & is_row[None, :]
    tl.store(transposed_ptr + v[:, None] * C + c[None, :], tl.trans(q), mask=is_inside)


# --- Launch --------------------------------------------------------------------

TILE = {"BLOCK_M": 128, "BLOCK_N": 64, "num_warps": 4}  # 128 x 128 with 8 warps takes 1.4 times as long


def _both_ways(shape, dtype, device):
    return torch.empty(shape, dtype=dtype, device=device), torch.empty(
        shape[::-1], dtype=dtype, device=device
    )


def _grid(shape):
    return triton.cdiv(shape[0], TILE["BLOCK_M"]), triton.cdiv(shape[1], TILE["BLOCK_N"])


def launch_quantise(x_MN, scale):
    """`quantise_plain` by a kernel, one program a tile."""
    x_MN = x_MN.contiguous()
    rows_MN, rows_NM = _both_ways(tuple(x_MN.shape), E4M3, x_MN.device)
    _quantise_kernel[_grid(x_MN.shape)](x_MN, rows_MN, rows_NM, scale, *x_MN.shape, **TILE)
    return rows_MN, rows_NM


def launch_gradient(logits_CV, target_C, moments_3C, grad_C, num_words):
    """`gradient_plain` by a kernel, one program a tile."""
    rows_CV, rows_VC = _both_ways(tuple(logits_CV.shape), E5M2, logits_CV.device)
    max_C, sum_C = moments_3C[0].contiguous(), moments_3C[1].contiguous()
    _gradient_kernel[_grid(logits_CV.shape)](
        *(logits_CV, target_C, max_C, sum_C, grad_C.contiguous(), rows_CV, rows_VC),
        *(*logits_CV.shape, num_words),
        **TILE,
    )
    return rows_CV, rows_VC


# --- Public --------------------------------------------------------------------


def quantise(x_MN):
    """A matrix in E4M3 with one scale, both ways round."""
    largest = torch.linalg.vector_norm(x_MN, ord=torch.inf).float()
    scale = torch.where(largest > 0, E4M3_MAX / largest, 1.0)
    rows_MN, rows_NM = (launch_quantise if x_MN.is_cuda else quantise_plain)(x_MN, scale)
    return FP8Matrix(rows_MN, rows_NM, scale.reciprocal())


def logits_gradient(logits_CV, target_C, moments_3C, grad_C, num_words):
    """The gradient of the logits in E5M2, both ways round; `moments_3C` is of the whole vocabulary."""
    largest = grad_C.abs().amax()
    scale = torch.where(largest > 0, GRADIENT_MAX / largest, 1.0)
    make = launch_gradient if logits_CV.is_cuda else gradient_plain
    rows_CV, rows_VC = make(logits_CV, target_C, moments_3C, grad_C * scale, num_words)
    return FP8Matrix(rows_CV, rows_VC, scale.reciprocal())


def multiply(left_MK, right_NK, inverses, out_MN, *, is_fast):
    """out = left @ right^T times both inverses. `is_fast` sums in the tensor cores' own precision."""
    if left_MK.is_cuda:
        options = {"out_dtype": out_MN.dtype, "use_fast_accum": is_fast}
        return torch._scaled_mm(left_MK, right_NK.t(), *inverses, **options, out=out_MN)
    product_MN = (left_MK.float() @ right_NK.float().t()) * (inverses[0] * inverses[1])
    return out_MN.copy_(product_MN)


class FP8Products:
    """The products of one head with its hidden states, chunk by chunk."""

    def __init__(self, hidden_TH, weight_VH):
        """Quantise both; every size is a multiple of ALIGNMENT."""
        self._hidden, self._weight = quantise(hidden_TH), quantise(weight_VH)

    def logits(self, chunk, out_CV):
        """hidden[chunk] @ weight^T."""
        hidden, weight = self._hidden, self._weight
        inverses = (hidden.inverse, weight.inverse)
        return multiply(hidden.rows_MN[chunk], weight.rows_MN, inverses, out_CV, is_fast=True)

    def gradient(self, logits_CV, column_C, moments_3C, grad_C, num_words):
        """The gradient of a chunk's logits, as the other two products take it."""
        return logits_gradient(logits_CV, column_C, moments_3C, grad_C, num_words)

    def hidden_gradient(self, gradient, out_CH):
        """gradient @ weight."""
        weight = self._weight
        inverses = (gradient.inverse, weight.inverse)
        multiply(gradient.rows_MN, weight.rows_NM, inverses, out_CH, is_fast=False)

    def add_weight_gradient(self, sum_VH, gradient, chunk):
        """sum += gradient^T @ hidden[chunk], some rows at a time."""
        hidden_HC = self._hidden.rows_NM[:, chunk]
        inverses = (gradient.inverse, self._hidden.inverse)
        for start in range(0, sum_VH.shape[0], ROWS):
            rows_RH = sum_VH[start : start + ROWS]
            product_RH = torch.empty_like(rows_RH)
            multiply(gradient.rows_NM[start : start + ROWS], hidden_HC, inverses, product_RH, is_fast=False)
            rows_RH.add_(product_RH)
