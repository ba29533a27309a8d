"""From hidden states to the loss of each token, at any tensor-parallel layout, without logits in memory.

Shape letters: S sequence, B micro-batch, H hidden, V vocabulary (one rank's share of the padded one).
"""

from typing import Any

import torch
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from torch import Tensor

from xelm_kernels.linear_cross_entropy import linear_cross_entropy


class Head(ColumnParallelLinear):
    """Megatron's head, which also gives the loss itself.

    That happens in `forward`, where Megatron waits for a weight that other data-parallel ranks send.
    """

    def forward(
        self, hidden: Tensor, weight: Any = None, *args: Any, labels: Any = None, **kwargs: Any
    ) -> Any:
        """Logits and bias as Megatron's; with `labels`, `head_loss` of them and of `kwargs`."""
        if labels is None:
            return super().forward(hidden, weight, *args, **kwargs)
        layout = {"tp_group": self.tp_group, "sequence_parallel": self.sequence_parallel}
        return head_loss(hidden, self.weight if weight is None else weight, labels, **layout, **kwargs)


def head_loss(
    hidden_SBH: Tensor,
    weight_VH: Tensor,
    labels_BS: Tensor,
    *,
    vocab_size: int,
    tp_group: Any,
    sequence_parallel: bool,
    grad_BS: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of each label, float32 [B, S].

    Args:
        hidden_SBH: the last layer's output; under sequence parallelism this rank's part of S.
        weight_VH: this rank's rows of the head. A BF16 weight's gradient is added to its float32
            `main_grad`, where Megatron has given it one; otherwise autograd gets it.
        labels_BS: token ids.
        vocab_size: rows of the whole head that are words.
        tp_group: the tensor-parallel ranks.
        sequence_parallel: whether S is divided over them.
        grad_BS: the gradient that backward will bring to each token's loss, if known: a quarter less work.
    """
    if sequence_parallel:
        hidden_SBH = gather_from_sequence_parallel_region(hidden_SBH, group=tp_group)
    else:
        hidden_SBH = copy_to_tensor_model_parallel_region(hidden_SBH, group=tp_group)
    main_grad_VH = _float32_main_grad(weight_VH)
    if main_grad_VH is not None and not getattr(weight_VH, "zero_out_wgrad", False):
        weight_VH = _InMainGrad.apply(weight_VH)  # type: ignore[no-untyped-call]
    S, B, H = hidden_SBH.shape
    loss_T: Tensor = linear_cross_entropy(
        hidden_SBH.reshape(S * B, H),
        weight_VH,
        _sequence_first(labels_BS),
        vocab_size=vocab_size,
        grad_T=None if grad_BS is None else _sequence_first(grad_BS),
        main_grad_VH=main_grad_VH,
        tp_group=tp_group,
    )
    return loss_T.view(S, B).t().contiguous()


def _sequence_first(x_BS: Tensor) -> Tensor:
    return x_BS.t().reshape(-1)


def _float32_main_grad(weight: Tensor) -> Tensor | None:
    # Of a float32 weight autograd sums the gradients just as exactly, so the order of the sum stays its own.
    main_grad: Tensor | None = getattr(weight, "main_grad", None)
    if weight.dtype == torch.float32 or main_grad is None or main_grad.dtype != torch.float32:
        return None
    return main_grad


class _InMainGrad(torch.autograd.Function):
    """Tells Megatron that a weight's gradient is in main_grad already, by the sign that it has for that.

    Its overlapped reduction wants a gradient to arrive nonetheless; what is in it does not matter. A
    weight that is the embedding too (`zero_out_wgrad`) gets the embedding's gradient and needs no sign.
    """

    @staticmethod
    def forward(ctx: Any, weight: Any) -> Tensor:
        ctx.parameter = weight
        ctx.set_materialize_grads(False)
        return weight.view_as(weight)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: None) -> Tensor:
        ctx.parameter.grad_added_to_main_grad = True
        return torch.empty_like(ctx.parameter)
