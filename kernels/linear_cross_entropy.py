"""Language-model head and cross-entropy in one, forward and backward.

    loss[t] = log sum_v exp( hidden[t] . weight[v] ) - hidden[t] . weight[target[t]]

The [T, V] logits are never whole in memory: tokens are taken in chunks of about CHUNK_BYTES of logits, each
chunk's logits come from one large matrix product, one pass reads them for the loss, and one pass turns them
into their own gradient, in place. Two more products make the gradients of hidden and weight from it.

Where the gradient of each loss is known beforehand, that is all, three products in forward. Otherwise
forward keeps two numbers a token, and backward makes the logits again: four products.

Shape letters: T tokens, C tokens of a chunk, V vocabulary (this rank's rows of the weight under tensor
parallelism; padding at its end), H hidden, R tensor-parallel ranks.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from xelm_kernels import cross_entropy_passes as passes
from xelm_kernels.cross_entropy_passes import sum_dtype
from xelm_kernels.fp8_products import ALIGNMENT, FP8Products

CHUNK_BYTES = 3 * 2**28  # smaller: the float32 gradient of the weight is read and written more often

# --- Reference -----------------------------------------------------------------


def linear_cross_entropy_ref(hidden_TH, weight_VH, target_T, vocab_size=None):
    """The definition, in float64. Tests use it, gradients included; keep it obvious."""
    logits_TV = hidden_TH.double() @ weight_VH[:vocab_size].double().t()
    return torch.nn.functional.cross_entropy(logits_TV, target_T, reduction="none")


# --- Products ------------------------------------------------------------------


class _Products:
    """The products of one head with its hidden states, chunk by chunk, in the dtype of both."""

    def __init__(self, hidden_TH, weight_VH):
        self._hidden_TH, self._weight_VH = hidden_TH, weight_VH

    def logits(self, chunk, out_CV):
        return torch.mm(self._hidden_TH[chunk], self._weight_VH.t(), out=out_CV)

    def gradient(self, logits_CV, column_C, moments_3C, grad_C, num_words):
        """Turn logits into their gradient, in place."""
        passes.logits_to_gradient(logits_CV, column_C, moments_3C, grad_C, num_words)
        return logits_CV

    def hidden_gradient(self, gradient_CV, out_CH):
        torch.mm(gradient_CV, self._weight_VH, out=out_CH)

    def add_weight_gradient(self, sum_VH, gradient_CV, chunk):
        add_product(sum_VH, gradient_CV.t(), self._hidden_TH[chunk])


def add_product(sum_VH, left_VC, right_CH):
    """sum += left @ right, in the sum's dtype."""
    if sum_VH.dtype == left_VC.dtype:
        sum_VH.addmm_(left_VC, right_CH)
    elif sum_VH.is_cuda and torch.__version__ >= (2, 8):
        torch.addmm(sum_VH, left_VC, right_CH, out_dtype=sum_VH.dtype, out=sum_VH)
    else:
        sum_VH.addmm_(left_VC.to(sum_VH.dtype), right_CH.to(sum_VH.dtype))


# --- Chunks --------------------------------------------------------------------


@dataclass(frozen=True)
class _Head:
    """What all chunks share: this rank's rows of the weight, and where they are in the vocabulary."""

    weight_VH: Any
    vocab_size: int
    tp_group: Any
    chunk_tokens: int
    fp8: bool

    @property
    def first_word(self):
        return 0 if self.tp_group is None else self.tp_group.rank() * self.weight_VH.shape[0]

    @property
    def num_words(self):
        return min(max(self.vocab_size - self.first_word, 0), self.weight_VH.shape[0])

    def products(self, hidden_TH):
        return (FP8Products if self.fp8 else _Products)(hidden_TH, self.weight_VH)

    def chunks(self, hidden_TH, products):
        """Yield the slice of each chunk and its logits, all in the same memory."""
        T, V = hidden_TH.shape[0], self.weight_VH.shape[0]
        memory_CV = hidden_TH.new_empty(min(self.chunk_tokens, T), V)
        for start in range(0, T, self.chunk_tokens):
            chunk = slice(start, min(start + self.chunk_tokens, T))
            yield chunk, products.logits(chunk, memory_CV[: chunk.stop - start])

    def moments(self, logits_CV, target_C):
        """Max, sum of exponentials and target's logit over the whole vocabulary, [3, C]."""
        moments_3C = passes.moments(logits_CV, target_C - self.first_word, self.num_words)
        if self.tp_group is not None and self.tp_group.size() > 1:
            moments_3C = _over_ranks(moments_3C, self.tp_group)
        # A GPU cannot raise: a target outside the vocabulary makes loss and gradient NaN.
        moments_3C[1].masked_fill_((target_C < 0) | (target_C >= self.vocab_size), torch.nan)
        return moments_3C


def _over_ranks(moments_3C, tp_group):
    ranks, (three, C) = tp_group.size(), moments_3C.shape
    gathered = moments_3C.new_empty(ranks * three, C)
    dist.all_gather_into_tensor(gathered, moments_3C, group=tp_group)
    return join_ranks(gathered.view(ranks, three, C))


def join_ranks(moments_R3C):
    """The moments over the whole vocabulary from those over each rank's words, [3, C]."""
    max_RC, sum_RC, picked_RC = moments_R3C.unbind(1)
    max_C = max_RC.amax(0)
    return torch.stack([max_C, (sum_RC * (max_RC - max_C).exp()).sum(0), picked_RC.sum(0)])


class _Gradients:
    """The gradients of hidden and weight, each where it is wanted, made chunk by chunk."""

    def __init__(self, head, hidden_TH, wanted, main_grad_VH):
        self.head = head
        self.hidden_TH = torch.empty_like(hidden_TH) if wanted[0] else None
        self.returned_VH = None
        if wanted[1] and main_grad_VH is None:
            self.returned_VH = torch.zeros_like(head.weight_VH, dtype=sum_dtype(head.weight_VH))
        self.weight_VH = self.returned_VH if main_grad_VH is None or not wanted[1] else main_grad_VH

    def add(self, products, chunk, logits_CV, target_C, moments_3C, grad_C):
        """Take in one chunk, whose logits are then no longer needed."""
        column_C, num_words = target_C - self.head.first_word, self.head.num_words
        gradient = products.gradient(logits_CV, column_C, moments_3C, grad_C, num_words)
        if self.hidden_TH is not None:
            products.hidden_gradient(gradient, self.hidden_TH[chunk])
        if self.weight_VH is not None:
            products.add_weight_gradient(self.weight_VH, gradient, chunk)

    def results(self):
        """Gradients of hidden and weight for autograd; None for what is not wanted or in main_grad."""
        returned = None if self.returned_VH is None else self.returned_VH.to(self.head.weight_VH.dtype)
        return self.hidden_TH, returned


# --- Autograd ------------------------------------------------------------------


def _loss(moments_3T):
    max_T, sum_T, picked_T = moments_3T
    return sum_T.log() - (picked_T - max_T)


def _walk(head, hidden_TH, target_T, gradients=None, grad_T=None):
    """The moments of all tokens, [3, T]; and the gradients, if asked for."""
    moments_3T = torch.empty(3, len(target_T), dtype=sum_dtype(hidden_TH), device=hidden_TH.device)
    products = head.products(hidden_TH)
    for chunk, logits_CV in head.chunks(hidden_TH, products):
        moments_3T[:, chunk] = head.moments(logits_CV, target_T[chunk])
        if gradients is not None:
            gradients.add(products, chunk, logits_CV, target_T[chunk], moments_3T[:, chunk], grad_T[chunk])
    return moments_3T


class _LossThenGradient(torch.autograd.Function):
    """Backward takes any gradient of the losses and makes the logits again."""

    @staticmethod
    def forward(ctx, hidden_TH, weight_VH, head, target_T, main_grad_VH):
        moments_3T = _walk(head, hidden_TH, target_T)
        ctx.save_for_backward(hidden_TH, weight_VH, target_T, moments_3T)
        ctx.head, ctx.main_grad_VH = head, main_grad_VH
        return _loss(moments_3T)

    @staticmethod
    def backward(ctx, grad_T):
        hidden_TH, _, target_T, moments_3T = ctx.saved_tensors
        head = ctx.head
        gradients = _Gradients(head, hidden_TH, ctx.needs_input_grad, ctx.main_grad_VH)
        products = head.products(hidden_TH)
        for chunk, logits_CV in head.chunks(hidden_TH, products):
            gradients.add(products, chunk, logits_CV, target_T[chunk], moments_3T[:, chunk], grad_T[chunk])
        return *gradients.results(), None, None, None


class _LossAndGradient(torch.autograd.Function):
    """Forward makes the gradients too, for losses whose own gradient is known then."""

    @staticmethod
    def forward(ctx, hidden_TH, weight_VH, head, target_T, main_grad_VH, grad_T):
        gradients = _Gradients(head, hidden_TH, ctx.needs_input_grad, main_grad_VH)
        moments_3T = _walk(head, hidden_TH, target_T, gradients, grad_T)
        ctx.save_for_backward(grad_T, *gradients.results())
        return _loss(moments_3T)

    @staticmethod
    def backward(ctx, grad_T):
        expected_T, *made = ctx.saved_tensors
        is_expected = torch.isclose(grad_T, expected_T, rtol=1e-6, atol=0.0).all()
        if grad_T.is_cuda:  # to raise would be to wait for the device
            one_or_nan = torch.where(is_expected, 1.0, torch.nan)
            made = [grad if grad is None else grad.mul_(one_or_nan) for grad in made]
        elif not is_expected:
            raise ValueError(
                "linear_cross_entropy: backward brought another gradient than grad_T; give as grad_T what "
                "each token's loss is multiplied with, or leave it out."
            )
        return *made, None, None, None, None


# --- Public --------------------------------------------------------------------


def linear_cross_entropy(
    hidden_TH,
    weight_VH,
    target_T,
    *,
    vocab_size=None,
    grad_T=None,
    main_grad_VH=None,
    tp_group=None,
    chunk_tokens=None,
    fp8=False,
):
    """Cross-entropy of each token under softmax(hidden @ weight^T). The module docstring has the formula.

    Args:
        hidden_TH: the last layer's output, whole on every tensor-parallel rank. Under tensor parallelism
            its gradient is this rank's part of a sum over ranks.
        weight_VH: the head, or this rank's rows of it; dtype of `hidden_TH`.
        target_T: token ids in the whole vocabulary.
        vocab_size: rows of the whole weight that are tokens; those after them are padding, which has
            probability 0. None: all.
        grad_T: the gradient that backward will bring, if it is known: 1 / T for a mean. It saves making the
            logits twice. The gradients are then made here, so this call has to be followed by its backward.
        main_grad_VH: float32; the weight's gradient is added to it and not returned to autograd.
        tp_group: the ranks that hold the other rows, in order.
        chunk_tokens: tokens whose logits are in memory at once; None: as many as CHUNK_BYTES hold.
        fp8: whether the products are in FP8, with gradients as accurate as that; every size, of the last
            chunk too, is then a multiple of 16.

    Returns:
        nats, float32 [T] (float64 of float64).

    Raises:
        ValueError: shapes or dtypes that do not fit; on a CPU, a target outside the vocabulary, or a
            gradient in backward that is not `grad_T`. On a GPU both give NaN.
    """
    if vocab_size is None:
        vocab_size = weight_VH.shape[0] * (1 if tp_group is None else tp_group.size())
    _check(hidden_TH, weight_VH, target_T, grad_T, main_grad_VH)
    if fp8:
        _check_fp8(hidden_TH, weight_VH)
    if not target_T.is_cuda:
        _check_target(target_T, vocab_size)
    chunk_tokens = chunk_tokens or _chunk_tokens(hidden_TH, weight_VH)
    head = _Head(weight_VH.detach(), vocab_size, tp_group, chunk_tokens, fp8)
    hidden_TH, target_T = hidden_TH.contiguous(), target_T.contiguous()
    if not (torch.is_grad_enabled() and (hidden_TH.requires_grad or weight_VH.requires_grad)):
        return _loss(_walk(head, hidden_TH.detach(), target_T))
    if grad_T is None:
        return _LossThenGradient.apply(hidden_TH, weight_VH, head, target_T, main_grad_VH)
    return _LossAndGradient.apply(hidden_TH, weight_VH, head, target_T, main_grad_VH, grad_T)


def _chunk_tokens(hidden_TH, weight_VH):
    """Chunks of equal size, a multiple of 256 tokens, about CHUNK_BYTES; with 128 products are 7 % slower."""
    T, row_bytes = hidden_TH.shape[0], weight_VH.shape[0] * weight_VH.element_size()
    num_chunks = max(1, -(-T * row_bytes // CHUNK_BYTES))
    return max(256, -(-T // num_chunks // 256) * 256)


def _check(hidden_TH, weight_VH, target_T, grad_T, main_grad_VH):
    (T, H), (V, width) = hidden_TH.shape, weight_VH.shape
    shapes = [width == H, target_T.shape == (T,), grad_T is None or grad_T.shape == (T,)]
    shapes.append(main_grad_VH is None or main_grad_VH.shape == (V, H))
    if not all(shapes):
        optional = {"grad": grad_T, "main_grad": main_grad_VH}
        found = "".join(f", {name} {list(x.shape)}" for name, x in optional.items() if x is not None)
        raise ValueError(
            f"linear_cross_entropy: hidden is [T={T}, H={H}], so weight must be [V, {H}], target and grad "
            f"[{T}], main_grad as weight; got weight {[V, width]}, target {list(target_T.shape)}{found}."
        )
    if hidden_TH.dtype != weight_VH.dtype:
        raise ValueError(
            f"linear_cross_entropy: hidden is {hidden_TH.dtype}, weight {weight_VH.dtype}; use one dtype."
        )
    if main_grad_VH is not None and main_grad_VH.dtype != torch.float32:
        raise ValueError(f"linear_cross_entropy: main_grad is {main_grad_VH.dtype}; give one in float32.")


def _check_fp8(hidden_TH, weight_VH):
    sizes = {"T": hidden_TH.shape[0], "H": hidden_TH.shape[1], "V": weight_VH.shape[0]}
    if hidden_TH.is_cuda and hidden_TH.dtype == torch.float32:
        raise ValueError("linear_cross_entropy: FP8 on a GPU takes bfloat16 or float16, not float32.")
    if odd := {name: size for name, size in sizes.items() if size % ALIGNMENT}:
        raise ValueError(
            f"linear_cross_entropy: FP8 wants multiples of {ALIGNMENT}, not {odd}; use fp8=False."
        )


def _check_target(target_T, vocab_size):
    outside_T = (target_T < 0) | (target_T >= vocab_size)
    if outside_T.any():
        t = int(outside_T.int().argmax())
        raise ValueError(
            f"linear_cross_entropy: target[{t}]={int(target_T[t])} is outside the vocabulary; give token "
            f"ids from 0 to {vocab_size - 1}."
        )
