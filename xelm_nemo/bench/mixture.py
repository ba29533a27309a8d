"""How fast the mixtures are, against eager torch and torch.compile taking turns in one process.

Shape letters: E experts, T tokens, V vocabulary.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Inputs = tuple[Tensor, Tensor, Tensor]  # logits [E, T, V], log-weights [T, E], targets [T]
Provider = Callable[[Tensor, Tensor, Tensor], Tensor]

GPU_SHAPES = ((8, 512, 256_008), (8, 32, 256_008), (8, 512, 50_272))
CPU_SHAPES = ((2, 4, 1000),)
_ROUNDS, _WARM_UP = 15, 3


def measure_mixture(device: str | torch.device) -> dict[str, Any]:
    """Log-probabilities of the whole vocabulary: time, memory and error of each provider at each shape.

    Args:
        device: where to run; at toy shapes on a CPU, where only the errors mean something.

    Returns:
        {"case", "device", "rows"}, a row for each shape and provider: milliseconds (p20, p50, p80), ratio to
        eager, GB/s of what has to be read and written once, extra bytes, and the largest error from float64.
    """
    from xelm_kernels.ensemble_mixture import ensemble_mixture, ensemble_mixture_ref

    def ours(logits: Tensor, log_w: Tensor, _: Tensor) -> Tensor:
        result: Tensor = ensemble_mixture(logits, log_w)
        return result

    def truth(logits: Tensor, log_w: Tensor, _: Tensor) -> Tensor:
        result: Tensor = ensemble_mixture_ref(logits, log_w)
        return result

    return _measure("mixture", eager_mixture, ours, truth, torch.device(device), writes_vocabulary=True)


def measure_target_mixture(device: str | torch.device) -> dict[str, Any]:
    """Log-probabilities of the targets alone, else as `measure_mixture`; eager is upstream's arithmetic."""
    from xelm_kernels.ensemble_log_prob import ensemble_log_prob, ensemble_log_prob_ref

    def ours(logits: Tensor, log_w: Tensor, target: Tensor) -> Tensor:
        result: Tensor = ensemble_log_prob(logits, log_w, target)
        return result

    def truth(logits: Tensor, log_w: Tensor, target: Tensor) -> Tensor:
        result: Tensor = ensemble_log_prob_ref(logits, log_w, target)
        return result

    return _measure(
        "target_mixture", upstream_targets, ours, truth, torch.device(device), writes_vocabulary=False
    )


def measure_blocks(device: str | torch.device) -> dict[str, Any]:
    """Milliseconds of each pass at other block sizes, of which the kernels' defaults are one; CUDA only."""
    from xelm_kernels.ensemble_mixture import launch_mixture
    from xelm_kernels.expert_rows import launch_expert_rows

    logits, log_w, target = _inputs(GPU_SHAPES[0], torch.device(device))
    lse, _ = launch_expert_rows(logits, log_w)
    rows = []
    for block, warps in [(2048, 4), (4096, 4), (4096, 8), (8192, 4), (8192, 8), (8192, 16), (16384, 16)]:
        options = {"block_v": block, "num_warps": warps}
        first = _times(lambda options=options: launch_expert_rows(logits, log_w, target, **options))  # type: ignore[misc]
        rows.append({"pass": "expert_rows", **options, "ms": _quantiles(first)["p50_ms"]})
    for block, warps in [(512, 2), (512, 4), (1024, 4), (1024, 8), (2048, 8), (4096, 8)]:
        options = {"block_v": block, "num_warps": warps}
        second = _times(lambda options=options: launch_mixture(logits, log_w, lse, **options))  # type: ignore[misc]
        rows.append({"pass": "mixture", **options, "ms": _quantiles(second)["p50_ms"]})
    return {"case": "mixture_blocks", "device": _name(torch.device(device)), "rows": rows}


def eager_mixture(logits_ETV: Tensor, log_w_TE: Tensor, _: Tensor) -> Tensor:
    """The formula as one writes it: float32, log_softmax, weights, logsumexp over the experts."""
    log_p_ETV = torch.log_softmax(logits_ETV.float(), dim=-1)
    return torch.logsumexp(log_p_ETV + log_w_TE.T[..., None], dim=0)


def upstream_targets(logits_ETV: Tensor, log_w_TE: Tensor, target_T: Tensor) -> Tensor:
    """Upstream's arithmetic: each expert's softmax in float32, its target, the log of the weighted sum."""
    p_ETV = torch.softmax(logits_ETV.float(), dim=-1)
    p_ET = p_ETV.gather(-1, target_T.expand(len(p_ETV), -1)[..., None])[..., 0]
    return (p_ET * log_w_TE.exp().T).sum(0).log()


def _measure(
    case: str,
    eager: Provider,
    ours: Provider,
    truth: Provider,
    device: torch.device,
    *,
    writes_vocabulary: bool,
) -> dict[str, Any]:
    providers = {"eager": eager, "ours": ours}
    if device.type == "cuda":
        providers["torch_compile"] = torch.compile(eager, dynamic=False)
    rows = []
    for shape in GPU_SHAPES if device.type == "cuda" else CPU_SHAPES:
        torch.compiler.reset()
        inputs = _inputs(shape, device)
        moved = inputs[0].nbytes + (4 * shape[1] * shape[2] if writes_vocabulary else 0)
        rows += _rows(providers, truth, inputs, shape, moved)
    return {"case": case, "device": _name(device), "rows": rows}


def _rows(
    providers: Mapping[str, Provider], truth: Provider, inputs: Inputs, shape: Sequence[int], moved_bytes: int
) -> list[dict[str, Any]]:
    calls = {name: (lambda call=call: call(*inputs)) for name, call in providers.items()}
    errors = {name: _error(call, truth, inputs) for name, call in providers.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(_ROUNDS):  # in turns, so that clocks and neighbours are alike for all
        for name, call in calls.items():
            times[name].append(_ms(call, inputs[0].device))
    eager_ms = _quantiles(times["eager"])["p50_ms"]
    return [
        {
            "shape_ETV": list(shape),
            "provider": name,
            **(found := _quantiles(times[name])),
            "times_eager": eager_ms / found["p50_ms"],
            "gb_per_s": moved_bytes / found["p50_ms"] / 1e6,
            "extra_bytes": _extra_bytes(calls[name], inputs[0].device),
            "max_error": errors[name],
        }
        for name in calls
    ]


def _inputs(shape: Sequence[int], device: torch.device) -> Inputs:
    E, T, V = shape
    generator = torch.Generator(device).manual_seed(0)
    logits = torch.empty(E, T, V, dtype=torch.bfloat16, device=device)
    for expert in logits:  # one at a time: a float32 copy of all would be twice as large as they are
        expert.copy_(4 * torch.randn(T, V, generator=generator, device=device))
    log_w = torch.log_softmax(torch.randn(T, E, generator=generator, device=device), -1)
    return logits, log_w, torch.randint(V, (T,), generator=generator, device=device)


def _error(call: Provider, truth: Provider, inputs: Inputs) -> float:
    """The largest difference from float64 at a few tokens; all of them would not fit beside it."""
    few = slice(0, 4)
    logits, log_w, target = inputs
    found = call(*inputs)[few].double()
    expected = truth(logits[:, few], log_w[few], target[few])
    return float((found - expected).abs().max())


def _times(call: Callable[[], Tensor]) -> list[float]:
    """Milliseconds of each of some calls."""
    for _ in range(_WARM_UP):
        call()
    return [_ms(call, torch.device("cuda")) for _ in range(_ROUNDS)]


def _ms(call: Callable[[], Tensor], device: torch.device) -> float:
    """Milliseconds of one call, on the device's own clock."""
    if device.type != "cuda":
        begin = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - begin)
    cuda: Any = torch.cuda  # its events have no types
    start, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def _extra_bytes(call: Callable[[], Tensor], device: torch.device) -> int | None:
    """What a call takes beside its inputs and its result; not known on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    return max(0, torch.cuda.max_memory_allocated() - before - result.nbytes)


def _quantiles(times_ms: Sequence[float]) -> dict[str, float]:
    tenths = statistics.quantiles(times_ms, n=10, method="inclusive")
    return {"p20_ms": tenths[1], "p50_ms": tenths[4], "p80_ms": tenths[7]}


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
