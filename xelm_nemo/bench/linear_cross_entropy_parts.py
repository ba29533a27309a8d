"""The parts of the head and its loss, each alone: where its time goes, and which block sizes are best."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from xelm_kernels import cross_entropy_passes as passes
from xelm_kernels.linear_cross_entropy import add_product
from xelm_nemo import device
from xelm_nemo.bench.registry import Case, Provider, Sizes

MOMENTS = ((4096, 4), (4096, 8), (8192, 8), (8192, 16), (16384, 16), (16384, 32), (32768, 32))
BOTH = ((4096, 8), (8192, 16), (8192, 32), (16384, 32), (32768, 32))
GRADIENT = ((1024, 4), (2048, 4), (4096, 4), (4096, 8), (8192, 8), (16384, 16))


@dataclass
class Inputs:
    """One chunk of tokens."""

    hidden_CH: Tensor
    weight_VH: Tensor
    target_C: Tensor
    grad_C: Tensor
    logits_CV: Tensor
    moments_3C: Tensor
    hidden_grad_CH: Tensor
    main_grad_VH: Tensor


def make_inputs(sizes: Sizes) -> Inputs:
    """A random chunk."""
    C, H, V = sizes["chunk"], sizes["hidden"], sizes["vocab"]
    torch.manual_seed(0)
    place = device.device()
    dtype = torch.bfloat16 if device.has_cuda() else torch.float32
    hidden_CH = torch.randn(C, H, device=place).to(dtype)
    weight_VH = (torch.randn(V, H, device=place) * H**-0.5).to(dtype)
    target_C = torch.randint(V, (C,), device=place)
    logits_CV = hidden_CH @ weight_VH.t()
    return Inputs(
        *(hidden_CH, weight_VH, target_C, torch.full((C,), 1 / C, device=place), logits_CV),
        passes.moments(logits_CV, target_C, V),
        torch.empty_like(hidden_CH),
        torch.zeros(V, H, device=place),
    )


def _logits(x: Inputs) -> None:
    torch.mm(x.hidden_CH, x.weight_VH.t(), out=x.logits_CV)


def _moments(x: Inputs, **options: int) -> None:
    _pass = passes.launch_moments if options else passes.moments
    _pass(x.logits_CV, x.target_C, x.logits_CV.shape[1], **options)


def _gradient(x: Inputs, **options: int) -> None:
    _pass = passes.launch_gradient if options else passes.logits_to_gradient
    _pass(x.logits_CV, x.target_C, x.moments_3C, x.grad_C, x.logits_CV.shape[1], **options)


def _hidden_grad(x: Inputs) -> None:
    torch.mm(x.logits_CV, x.weight_VH, out=x.hidden_grad_CH)


def _weight_grad_added(x: Inputs) -> None:
    add_product(x.main_grad_VH, x.logits_CV.t(), x.hidden_CH)


def _weight_grad_alone(x: Inputs) -> None:
    x.logits_CV.t() @ x.hidden_CH


def _copy(x: Inputs) -> None:
    x.logits_CV.clone()


def _in_turn(x: Inputs) -> None:
    torch.mm(x.hidden_CH, x.weight_VH.t())
    _moments(x)
    _gradient(x)


def _beside(x: Inputs) -> None:
    """The next chunk's logits on one stream, this chunk's passes on another."""
    here, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(here)
    with torch.cuda.stream(side):
        _moments(x)
        _gradient(x)
    torch.mm(x.hidden_CH, x.weight_VH.t())
    here.wait_stream(side)


@triton.jit  # type: ignore[untyped-decorator]
def _row_kernel(logits_ptr, target_ptr, grad_ptr, moments_ptr, V, stride_t, BLOCK_V: tl.constexpr):  # type: ignore[no-untyped-def]
    t = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + t * stride_t
    row_max = -float("inf")
    row_sum = 0.0
    for start in range(0, V, BLOCK_V):
        v = start + tl.arange(0, BLOCK_V)
        x = tl.load(row_ptr + v, mask=v < V, other=-float("inf"), eviction_policy="evict_last").to(tl.float32)
        new_max = tl.maximum(row_max, tl.max(x, 0))
        row_sum = row_sum * tl.exp(row_max - new_max) + tl.sum(tl.exp(x - new_max), 0)
        row_max = new_max
    y = tl.load(target_ptr + t)
    grad = tl.load(grad_ptr + t)
    tl.store(moments_ptr + t, row_max)
    scale = 1.0 / row_sum
    for start in range(0, V, BLOCK_V):
        v = start + tl.arange(0, BLOCK_V)
        x = tl.load(row_ptr + v, mask=v < V, other=-float("inf"), eviction_policy="evict_first").to(
            tl.float32
        )
        p = tl.exp(x - row_max) * scale
        g = tl.where(v == y, p - 1.0, p) * grad
        tl.store(row_ptr + v, g.to(logits_ptr.dtype.element_ty), mask=v < V)


def _row(x: Inputs, *, block_v: int, num_warps: int) -> None:
    """Both passes in one program a row, so that the second may find the row in the cache."""
    C, V = x.logits_CV.shape
    _row_kernel[(C,)](
        *(x.logits_CV, x.target_C, x.grad_C, x.moments_3C, V, x.logits_CV.stride(0)),
        BLOCK_V=block_v,
        num_warps=num_warps,
    )


def providers(sizes: Sizes) -> list[Provider]:
    """A copy of the logits, the parts in their order, and the two passes with other block sizes."""
    C, H, V = sizes["chunk"], sizes["hidden"], sizes["vocab"]
    product, read = 2.0 * C * H * V, 2.0 * C * V  # bytes of BF16 logits

    def part(name: str, do: Callable[[Inputs], None], flops: float = 0.0, num_bytes: float = 0.0) -> Provider:
        return Provider(name, lambda inputs: partial(do, inputs), flops, num_bytes)

    parts = [
        part("copy", _copy, num_bytes=2 * read),
        part("logits", _logits, flops=product),
        part("moments", _moments, num_bytes=read),
        part("gradient", _gradient, num_bytes=2 * read),
        part("hidden_grad", _hidden_grad, flops=product),
        part("weight_grad_added_to_float32", _weight_grad_added, flops=product),
        part("weight_grad_alone", _weight_grad_alone, flops=product),
    ]
    if not device.has_cuda():
        return parts
    parts += [part("logits_then_passes", _in_turn), part("logits_beside_passes", _beside)]
    for name, do, moved, blocks in (
        ("moments", _moments, read, MOMENTS),
        ("gradient", _gradient, 2 * read, GRADIENT),
        ("both_passes", _row, 3 * read, BOTH),
    ):
        for block_v, num_warps in blocks:
            with_blocks = partial(do, block_v=block_v, num_warps=num_warps)
            parts.append(part(f"{name}_{block_v}_{num_warps}", with_blocks, num_bytes=moved))
    return parts


CASE = Case(
    name="linear_cross_entropy_parts",
    sizes={"chunk": (1024, 2048, 4096), "hidden": (2048,), "vocab": (256_128,)},
    inputs=make_inputs,
    providers=providers,
)
