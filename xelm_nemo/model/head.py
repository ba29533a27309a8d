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
from xelm_nemo.model.main_grad import float32_main_grad, mark_as_added
from xelm_nemo.model.memory import head_chunk


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
        is_tied = self.weight is None  # then the embedding on this rank tells Megatron of the gradient
        layout = {"tp_group": self.tp_group, "sequence_parallel": self.sequence_parallel}
        weight = self.weight if weight is None else weight
        return head_loss(hidden, weight, labels, is_tied=is_tied, **layout, **kwargs)


def head_loss(
    hidden_SBH: Tensor,
    weight_VH: Tensor,
    labels_BS: Tensor,
    *,
    vocab_size: int,
    tp_group: Any,
    sequence_parallel: bool,
    is_tied: bool,
    fp8: bool = False,
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
        is_tied: whether the weight is this rank's embedding too.
        fp8: whether the products are in FP8.
        grad_BS: the gradient that backward will bring to each token's loss, if known: a quarter less work.
    """
    if sequence_parallel:
        hidden_SBH = gather_from_sequence_parallel_region(hidden_SBH, group=tp_group)
    else:
        hidden_SBH = copy_to_tensor_model_parallel_region(hidden_SBH, group=tp_group)
    main_grad_VH = float32_main_grad(weight_VH)
    if main_grad_VH is not None and not is_tied:
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
        chunk_tokens=head_chunk(S * B, weight_VH.shape[0] * weight_VH.element_size(), fp8=fp8),
        fp8=fp8,
    )
    return loss_T.view(S, B).t().contiguous()


def _sequence_first(x_BS: Tensor) -> Tensor:
    return x_BS.t().reshape(-1)


class _InMainGrad(torch.autograd.Function):
    """A weight whose gradient comes to main_grad without autograd."""

    @staticmethod
    def forward(ctx: Any, weight: Any) -> Tensor:
        ctx.parameter = weight
        ctx.set_materialize_grads(False)
        return weight.view_as(weight)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: None) -> Tensor:
        return mark_as_added(ctx.parameter)
