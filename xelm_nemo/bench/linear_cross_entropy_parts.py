"""The parts of the head and its loss, each alone: where its time goes."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from xelm_kernels import cross_entropy_passes as passes
from xelm_kernels.linear_cross_entropy import add_product
from xelm_nemo import device
from xelm_nemo.bench.registry import Case, Provider, Sizes


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


def _moments(x: Inputs) -> None:
    passes.moments(x.logits_CV, x.target_C, x.logits_CV.shape[1])


def _gradient(x: Inputs) -> None:
    passes.logits_to_gradient(x.logits_CV, x.target_C, x.moments_3C, x.grad_C, x.logits_CV.shape[1])


def _hidden_grad(x: Inputs) -> None:
    torch.mm(x.logits_CV, x.weight_VH, out=x.hidden_grad_CH)


def _weight_grad_added(x: Inputs) -> None:
    add_product(x.main_grad_VH, x.logits_CV.t(), x.hidden_CH)


def _weight_grad_alone(x: Inputs) -> None:
    x.logits_CV.t() @ x.hidden_CH


def _copy(x: Inputs) -> None:
    x.logits_CV.clone()


def providers(sizes: Sizes) -> list[Provider]:
    """A copy of the logits, which no pass can beat, and the parts in their order."""
    C, H, V = sizes["chunk"], sizes["hidden"], sizes["vocab"]
    product, read = 2.0 * C * H * V, 2.0 * C * V  # bytes of BF16 logits

    def part(name: str, do: Callable[[Inputs], None], flops: float = 0.0, num_bytes: float = 0.0) -> Provider:
        return Provider(name, lambda inputs: partial(do, inputs), flops, num_bytes)

    return [
        part("copy", _copy, num_bytes=2 * read),
        part("logits", _logits, flops=product),
        part("moments", _moments, num_bytes=read),
        part("gradient", _gradient, num_bytes=2 * read),
        part("hidden_grad", _hidden_grad, flops=product),
        part("weight_grad_added_to_float32", _weight_grad_added, flops=product),
        part("weight_grad_alone", _weight_grad_alone, flops=product),
    ]


CASE = Case(
    name="linear_cross_entropy_parts",
    sizes={"chunk": (1024, 2048), "hidden": (2048,), "vocab": (256_128,)},
    inputs=make_inputs,
    providers=providers,
)
