"""Log-probabilities of the whole vocabulary under the mixture, against eager torch and torch.compile.

GB/s count the logits, read once, and the result, written once, in float32.

Shape letters: E experts, T tokens, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from xelm_kernels.ensemble_mixture import ensemble_mixture, ensemble_mixture_ref
from xelm_nemo import device
from xelm_nemo.bench.registry import Case, Provider, Sizes

SIZES = {"experts": (8,), "tokens": (512, 32), "vocab": (256_008, 50_272)}
CHECKED_TOKENS = slice(0, 4)  # all of them would not fit beside the inputs in float64


@dataclass
class Inputs:
    """What every provider works on, and where it leaves its result."""

    logits_ETV: Tensor
    log_w_TE: Tensor
    target_T: Tensor
    result: Tensor | None = None


Mixture = Callable[[Tensor, Tensor, Tensor], Tensor]  # of logits, log-weights and targets


def make_inputs(sizes: Sizes) -> Inputs:
    """Random logits in bfloat16, weights and targets."""
    E, T, V = sizes["experts"], sizes["tokens"], sizes["vocab"]
    place = device.device()
    torch.manual_seed(0)
    logits_ETV = torch.empty(E, T, V, dtype=torch.bfloat16, device=place)
    for logits_TV in logits_ETV:  # one at a time: a float32 copy of all would be twice as large as they are
        logits_TV.copy_(4 * torch.randn(T, V, device=place))
    log_w_TE = torch.log_softmax(torch.randn(T, E, device=place), -1)
    return Inputs(logits_ETV, log_w_TE, torch.randint(V, (T,), device=place))


def provider(name: str, mixture: Mixture, num_bytes: float, *, compiled: bool = False) -> Provider:
    """One that leaves its result in the inputs; the memory of the last one is free for the next."""

    def prepare(inputs: Inputs) -> Callable[[], None]:
        do = torch.compile(mixture, dynamic=False) if compiled else mixture

        def step() -> None:
            inputs.result = None
            inputs.result = do(inputs.logits_ETV, inputs.log_w_TE, inputs.target_T)

        return step

    return Provider(name, prepare, num_bytes=num_bytes)


def compared(eager: Mixture, ours: Mixture, num_bytes: float) -> list[Provider]:
    """Eager torch, the same compiled where there is a GPU, and ours."""
    compiled = [provider("torch_compile", eager, num_bytes, compiled=True)] if device.has_cuda() else []
    return [provider("eager", eager, num_bytes), *compiled, provider("ours", ours, num_bytes)]


def errors_against(truth: Mixture) -> Callable[[Inputs, Callable[[], None]], dict[str, float]]:
    """The largest difference from the definition in float64, at a few tokens."""

    def errors(inputs: Inputs, step: Callable[[], None]) -> dict[str, float]:
        step()
        assert inputs.result is not None
        few = CHECKED_TOKENS
        expected = truth(inputs.logits_ETV[:, few], inputs.log_w_TE[few], inputs.target_T[few])
        return {"largest": float((inputs.result[few].double() - expected).abs().max())}

    return errors


def eager_mixture(logits_ETV: Tensor, log_w_TE: Tensor, _: Tensor) -> Tensor:
    """The formula as one writes it: float32, log_softmax, weights, logsumexp over the experts."""
    log_p_ETV = torch.log_softmax(logits_ETV.float(), dim=-1)
    return torch.logsumexp(log_p_ETV + log_w_TE.T[..., None], dim=0)


def _ours(logits_ETV: Tensor, log_w_TE: Tensor, _: Tensor) -> Tensor:
    result: Tensor = ensemble_mixture(logits_ETV, log_w_TE)
    return result


def _truth(logits_ETV: Tensor, log_w_TE: Tensor, _: Tensor) -> Tensor:
    result: Tensor = ensemble_mixture_ref(logits_ETV, log_w_TE)
    return result


def providers(sizes: Sizes) -> list[Provider]:
    """Eager first."""
    E, T, V = sizes["experts"], sizes["tokens"], sizes["vocab"]
    return compared(eager_mixture, _ours, 2.0 * E * T * V + 4.0 * T * V)


CASE = Case("mixture", SIZES, make_inputs, providers, errors_against(_truth))
