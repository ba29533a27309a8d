"""The head and its loss, forward and backward, as one step of training has it.

Every provider gets BF16 hidden states [T, H], the head's weight [V, H] and targets [T], and leaves the
gradient of the mean loss in `hidden.grad` and added to a float32 `main_grad` [V, H], as Megatron's
optimizer wants it. Half of the tokens are predicted well and half not at all: a filter of small gradients
has something to do on the one half, and everything to lose on the other. TFLOP/s count the three products
that a step cannot do without, 6 T H V operations; what is computed again is not counted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from xelm_kernels.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_ref
from xelm_nemo import device
from xelm_nemo.bench.registry import Case, Provider, Sizes

CHUNKS = (1024, 1536, 2048, 4096)
REFERENCE_TOKENS = 1024  # a chunk of the float64 check


@dataclass
class Inputs:
    """What every provider works on, and what it should give."""

    hidden_TH: Tensor
    weight_VH: Tensor
    target_T: Tensor
    main_grad_VH: Tensor
    loss: Tensor
    expected: dict[str, Tensor]


def make_inputs(sizes: Sizes) -> Inputs:
    """Random inputs of these sizes and the float64 gradients of the mean loss."""
    T, H, V = sizes["tokens"], sizes["hidden"], sizes["vocab"]
    torch.manual_seed(0)
    place = device.device()
    dtype = torch.bfloat16 if device.has_cuda() else torch.float32
    weight_VH = (torch.randn(V, H, device=place) * H**-0.5).to(dtype)
    target_T = torch.randint(V, (T,), device=place)
    hidden_TH = torch.randn(T, H, device=place)
    hidden_TH[::2] += 12 * torch.nn.functional.normalize(weight_VH[target_T[::2]].float(), dim=1)
    hidden_TH = hidden_TH.to(dtype)
    return Inputs(
        hidden_TH.requires_grad_(),
        weight_VH.requires_grad_(),
        target_T,
        torch.zeros(V, H, device=place),
        torch.zeros((), device=place),
        _expected(hidden_TH, weight_VH, target_T),
    )


def _expected(hidden_TH: Tensor, weight_VH: Tensor, target_T: Tensor) -> dict[str, Tensor]:
    """The definition's loss and gradients, a chunk of tokens at a time."""
    weight = weight_VH.detach().double().requires_grad_()
    losses, hidden_grads = [], []
    for start in range(0, len(target_T), REFERENCE_TOKENS):
        chunk = slice(start, start + REFERENCE_TOKENS)
        hidden = hidden_TH[chunk].detach().double().requires_grad_()
        loss = linear_cross_entropy_ref(hidden, weight, target_T[chunk]).sum() / len(target_T)
        loss.backward()
        losses.append(loss.detach())
        assert hidden.grad is not None
        hidden_grads.append(hidden.grad)
    assert weight.grad is not None
    return {
        "loss": torch.stack(losses).sum(),
        "hidden": torch.cat(hidden_grads),
        "weight": weight.grad.float(),
    }


def errors(inputs: Inputs, step: Callable[[], None]) -> dict[str, float]:
    """Relative errors of one more step, ||found - expected|| / ||expected||; none where it has no result."""
    _forget_gradients(inputs)
    inputs.main_grad_VH.zero_()
    step()
    if inputs.hidden_TH.grad is None:
        return {}
    found = {"loss": inputs.loss, "hidden": inputs.hidden_TH.grad, "weight": inputs.main_grad_VH}
    relative = {}
    for name, expected in inputs.expected.items():
        difference = (found[name].to(expected.dtype) - expected).norm()
        relative[name] = float(difference / expected.norm())
    return relative


def _forget_gradients(inputs: Inputs) -> None:
    inputs.hidden_TH.grad = inputs.weight_VH.grad = None


def _step(inputs: Inputs, loss_of: Callable[[], Tensor]) -> None:
    """One step of training: whatever autograd gives the weight is added to main_grad, as Megatron does."""
    _forget_gradients(inputs)
    loss = loss_of()
    loss.backward()  # type: ignore[no-untyped-call]
    inputs.loss = loss.detach()
    if inputs.weight_VH.grad is not None:
        inputs.main_grad_VH.add_(inputs.weight_VH.grad)
        inputs.weight_VH.grad = None


def _by_autograd(loss_of: Callable[[Inputs], Tensor]) -> Callable[[Inputs], Callable[[], None]]:
    return lambda inputs: partial(_step, inputs, partial(loss_of, inputs))


def _ours(
    inputs: Inputs, *, is_grad_known: bool = True, chunk_tokens: int | None = None, fp8: bool = False
) -> Tensor:
    T = len(inputs.target_T)
    loss_T: Tensor = linear_cross_entropy(
        inputs.hidden_TH,
        inputs.weight_VH,
        inputs.target_T,
        grad_T=(torch.ones((), device=inputs.loss.device) / T).expand(T) if is_grad_known else None,
        main_grad_VH=inputs.main_grad_VH,
        chunk_tokens=chunk_tokens,
        fp8=fp8,
    )
    return loss_T.mean()


def _three_products(inputs: Inputs) -> Callable[[], None]:
    """The floor: nothing but the products, all logits in memory, no result."""

    def step() -> None:
        hidden_TH, weight_VH = inputs.hidden_TH.detach(), inputs.weight_VH.detach()
        logits_TV = hidden_TH @ weight_VH.t()
        for left, right in ((logits_TV, weight_VH), (logits_TV.t(), hidden_TH)):
            torch.mm(left, right)

    return step


def _megatron(name: str) -> Callable[[Inputs], Callable[[], None]]:
    """Megatron-core's own head, ColumnParallelLinear, and its own cross-entropy or Transformer Engine's."""

    def prepare(inputs: Inputs) -> Callable[[], None]:
        from megatron.core import parallel_state
        from megatron.core.tensor_parallel import ColumnParallelLinear, vocab_parallel_cross_entropy
        from megatron.core.transformer.transformer_config import TransformerConfig

        group = parallel_state.get_tensor_model_parallel_group()
        cross_entropy = vocab_parallel_cross_entropy
        if name == "megatron_te":
            from megatron.core.extensions.transformer_engine import te_parallel_cross_entropy

            if te_parallel_cross_entropy is None:
                raise ImportError("transformer_engine")
            cross_entropy = partial(te_parallel_cross_entropy, tp_group=group)
        V, H = inputs.weight_VH.shape
        config = TransformerConfig(num_layers=1, hidden_size=H, num_attention_heads=1)
        head: Any = ColumnParallelLinear(
            *(H, V), config=config, init_method=lambda weight: None, bias=False, skip_bias_add=False,
            skip_weight_param_allocation=True, tp_group=group,
        )  # fmt: skip

        def loss() -> Tensor:
            logits_T1V, _ = head(inputs.hidden_TH[:, None], weight=inputs.weight_VH)
            result: Tensor = cross_entropy(logits_T1V, inputs.target_T[:, None]).mean()
            return result

        return partial(_step, inputs, loss)

    return prepare


def _torch_compile(inputs: Inputs) -> Callable[[], None]:
    @torch.compile
    def loss(hidden_TH: Tensor, weight_VH: Tensor, target_T: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy((hidden_TH @ weight_VH.t()).float(), target_T)

    return partial(_step, inputs, partial(loss, inputs.hidden_TH, inputs.weight_VH, inputs.target_T))


def _liger_large_chunks(inputs: Inputs) -> Callable[[], None]:
    """Chunks of 2,048 of 8,192 tokens; its default, 128, adds to the weight's gradient 64 times."""
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy as liger

    x = inputs.hidden_TH, inputs.weight_VH, inputs.target_T
    return partial(_step, inputs, partial(liger, *x, accum_dtype=torch.float32, chunk_mem_const=32))


def _cut_cross_entropy(inputs: Inputs) -> Callable[[], None]:
    from cut_cross_entropy import linear_cross_entropy as cut

    return partial(_step, inputs, partial(cut, inputs.hidden_TH, inputs.weight_VH, inputs.target_T))


def providers(sizes: Sizes) -> list[Provider]:
    """Megatron first, then the floor, other peers, and ours with its variants."""
    T, H, V = sizes["tokens"], sizes["hidden"], sizes["vocab"]
    chunks = {f"ours_chunk_{chunk}": chunk for chunk in CHUNKS if chunk <= T}
    prepare = {
        "megatron": _megatron("megatron"),
        "three_products": _three_products,
        "megatron_te": _megatron("megatron_te"),
        "torch_compile": _torch_compile,
        "liger_large_chunks": _liger_large_chunks,
        "cut_cross_entropy": _cut_cross_entropy,
        "ours": _by_autograd(_ours),
        "ours_any_grad": _by_autograd(partial(_ours, is_grad_known=False)),
        "ours_fp8": _by_autograd(partial(_ours, chunk_tokens=4096, fp8=True)),
        **{name: _by_autograd(partial(_ours, chunk_tokens=chunk)) for name, chunk in chunks.items()},
    }
    return [Provider(name, made, flops=6.0 * T * H * V) for name, made in prepare.items()]


CASE = Case(
    name="linear_cross_entropy",
    sizes={"tokens": (8192,), "hidden": (2048,), "vocab": (256_128,)},
    inputs=make_inputs,
    providers=providers,
    errors=errors,
    floor="three_products",
)
