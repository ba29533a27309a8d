"""Megatron's float32 gradients: adding to one in a backward of one's own, and saying so."""

from typing import Any

import torch
from torch import Tensor


def float32_main_grad(weight: Tensor) -> Tensor | None:
    """Where the gradient of a BF16 weight is summed, if Megatron has given it such a place.

    Of a float32 weight autograd sums the gradients just as exactly, so the order of the sum stays its own.
    """
    main_grad: Tensor | None = getattr(weight, "main_grad", None)
    if weight.dtype == torch.float32 or main_grad is None or main_grad.dtype != torch.float32:
        return None
    return main_grad


def mark_as_added(parameter: Any) -> Tensor:
    """Tell Megatron that a weight's gradient is in main_grad already; gives what backward has to return.

    Its overlapped reduction wants a gradient to arrive nonetheless; what is in it does not matter.
    """
    parameter.grad_added_to_main_grad = True
    return torch.empty_like(parameter)
