"""One device layer for CUDA and CPU: the only place that knows which of the two runs.

Megatron-core asks for CUDA by name: `device="cuda"` in its schedules, `torch.cuda.current_device()`
for scratch buffers, a CUDA dropout generator per tensor-parallel rank, 'torch.cuda.FloatTensor' as the
type of a gradient. On a machine without CUDA, `enter` gives each of these a CPU meaning, so that the
same training code runs over gloo. With CUDA it changes nothing.
"""

import contextlib
import functools
import os
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from numpy.typing import NDArray
from torch.overrides import TorchFunctionMode

_entered = False


def _put_before_megatron(name: str, **contents: Any) -> None:
    """Have Megatron find a module of its own already imported, with these contents, unless it is by now."""
    module = types.ModuleType(name)
    module.__dict__.update(contents)
    sys.modules.setdefault(name, module)


def _compiled_when_called(function: Callable[..., Any]) -> Callable[..., Any]:
    """`torch.compile`, from the first call on."""
    compiled = functools.cache(lambda: torch.compile(function))

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return compiled()(*args, **kwargs)

    return call


# Megatron compiles a CUDA allocator for its inference engine whenever it is imported where there is an
# nvcc, 15 seconds for each process. Nothing here uses that engine.
_put_before_megatron(
    "megatron.core.inference.unified_memory", has_unified_memory=False, create_unified_mempool=None
)
# It decorates functions with torch.compile, which imports the compiler, 2 seconds, whether or not one runs.
_put_before_megatron("megatron.core.jit", jit_fuser=_compiled_when_called)


def has_cuda() -> bool:
    """Whether a CUDA device is usable."""
    return torch.cuda.is_available()


def count() -> int:
    """CUDA devices of this machine; 0 without CUDA."""
    return torch.cuda.device_count()


def names() -> list[str]:
    """What the CUDA devices of this machine are called."""
    return [torch.cuda.get_device_name(index) for index in range(count())]


def name() -> str:
    """What this process's CUDA device is called."""
    return torch.cuda.get_device_name()


def capability() -> tuple[int, int]:
    """The compute capability of this process's CUDA device."""
    return torch.cuda.get_device_capability()


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device() -> torch.device:
    """The device of this process: its CUDA device, or the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if has_cuda() else torch.device("cpu")


def free_bytes(place: torch.device) -> int:
    """What models may take of a device's memory: four fifths of what is free; the rest is to compute in."""
    return torch.cuda.mem_get_info(place)[0] * 4 // 5 if place.type == "cuda" else sys.maxsize


def total_bytes() -> int:
    """Memory of the largest CUDA device of this machine, a small one for the screen aside; 0 without CUDA."""
    return max((torch.cuda.get_device_properties(index).total_memory for index in range(count())), default=0)


def distributed_backend() -> str:
    """The torch.distributed backend of the device."""
    return "nccl" if has_cuda() else "gloo"


def enter(*, local_rank: int = 0, threads: int = 1, deterministic: bool = False) -> None:
    """Prepare this process to run Megatron on its device; call it before a model is built.

    Args:
        local_rank: which CUDA device of the machine is this process's own.
        threads: CPU threads of one operation. The bits of a result depend on it.
        deterministic: CUDA gives the same bits in every run, as a CPU does anyway.
    """
    global _entered
    torch.set_num_threads(threads)
    if has_cuda():
        # As torch does by itself: Transformer Engine's products of float32 are TF32's otherwise, and a text's
        # score then depends on its batch in the fourth digit. `command.run` does it earlier.
        os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
        if deterministic:
            _be_deterministic()
        torch.cuda.set_device(local_rank)
    elif not _entered:
        _stand_in_for_cuda()
        _CpuDevice().__enter__()  # type: ignore[no-untyped-call]
    _entered = True


def _be_deterministic() -> None:
    """Before the first product, for cuBLAS looks then, and Transformer Engine when it is imported."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    os.environ["NVTE_ALLOW_NONDETERMINISTIC_ALGO"] = "0"
    torch.use_deterministic_algorithms(True)
    # Nothing here reads what it has not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


@contextlib.contextmanager
def span(name: str) -> Iterator[None]:
    """Name what the block does, in torch's profiler and, on CUDA, in Nsight. As a decorator, each call.

    It takes some microseconds, so it is always there.
    """
    nvtx: Any = torch.cuda.nvtx
    with torch.profiler.record_function(name), nvtx.range(name) if has_cuda() else contextlib.nullcontext():
        yield


def release() -> None:
    """Give memory that is cached but not used back to the CUDA device, for other processes."""
    if has_cuda():
        torch.cuda.empty_cache()


def thread_start() -> Callable[[], None]:
    """What a new thread has to call first to have this process's CUDA device; CUDA gives it device 0."""
    if not has_cuda():
        return lambda: None
    return functools.partial(torch.cuda.set_device, torch.cuda.current_device())


def wait(place: torch.device | str) -> None:
    """Return when a device has done all that it was told."""
    if torch.device(place).type == "cuda":
        torch.cuda.synchronize(place)


def sent(array: NDArray[Any] | torch.Tensor, place: torch.device | str | None = None) -> torch.Tensor:
    """A copy on a device, None: on this process's, without waiting for it."""
    block = torch.as_tensor(array)
    target = device() if place is None else torch.device(place)
    if target.type == "cuda":  # from other pages CUDA copies only when all that it was told before is done
        block = block.pin_memory()
    return block.to(target, non_blocking=True)


def page_lock(memory: torch.Tensor) -> bool:
    """Keep a CPU tensor's pages where they are, so that the CUDA device reads and writes them by itself.

    Call it in a thread of its own: where the system refuses, CUDA tells whatever the thread does next.

    Returns:
        Whether it did, and `page_unlock` has to be called before the memory is given back.
    """
    cuda = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    return bool(cuda.cudaHostRegister(memory.data_ptr(), memory.nbytes, 0) == cuda.cudaError.success)


def page_unlock(memory: torch.Tensor) -> None:
    """Take back `page_lock`."""
    torch.cuda.cudart().cudaHostUnregister(memory.data_ptr())  # type: ignore[no-untyped-call]


class _CpuDevice(TorchFunctionMode):
    """Reads "cuda" as "cpu" wherever Megatron writes it as an argument or expects it as a type."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if "device" in kwargs:
            kwargs["device"] = _on_cpu(kwargs["device"])
        kwargs.pop("pin_memory", None)  # pages are pinned for the way to a GPU
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.to:
            args = (args[0], *map(_on_cpu, args[1:]))
        result = func(*args, **kwargs)
        if func is torch.Tensor.type and isinstance(result, str):  # the optimizer tests for CUDA's names
            result = result.replace("torch.", "torch.cuda.")
        return result


def _on_cpu(value: Any) -> Any:
    """The CPU for a CUDA device; anything else as it is."""
    return "cpu" if isinstance(value, str | torch.device) and "cuda" in str(value) else value


class _NoStream:
    """A CUDA stream or event where everything happens in order anyway."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take and ignore what a stream takes."""

    def wait_stream(self, *args: Any) -> None:
        """Nothing to wait for."""

    wait_event = synchronize = wait_stream

    def record_event(self, *args: Any) -> "_NoStream":
        """An event that has happened."""
        return self

    record = record_event

    def query(self) -> bool:
        """Everything has happened."""
        return True


def _stand_in_for_cuda() -> None:
    from megatron.core.tensor_parallel import random as megatron_random

    def constant(value: Any) -> Any:
        # A function object each: torch._dynamo refuses one object under two names.
        return lambda *args, **kwargs: value

    cuda: Any = torch.cuda
    cuda.current_device = constant(torch.device("cpu"))
    cuda.Stream = cuda.Event = _NoStream
    cuda.stream = lambda stream: contextlib.nullcontext()
    cuda.current_stream = cuda.default_stream = lambda *args: _NoStream()
    cuda.synchronize, cuda.empty_cache, cuda.set_device = constant(None), constant(None), constant(None)
    torch.distributed.all_to_all_single = _with_plain_sizes(torch.distributed.all_to_all_single)
    cuda.is_initialized = constant(True)  # NeMo asserts it before it reads a checkpoint
    # The CPU generator plays the CUDA one: Megatron's tracker swaps its state, so that dropout in
    # tensor-parallel regions differs between ranks and agrees elsewhere, exactly as on a GPU.
    cuda.manual_seed = torch.manual_seed
    cuda.get_rng_state = lambda *args: torch.get_rng_state()
    cuda.set_rng_state = lambda state, *args: torch.set_rng_state(state)
    random: Any = megatron_random
    random._get_cuda_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    random.CudaRNGStatesTracker.fork = _fork_cpu_generator


def _with_plain_sizes(exchange: Callable[..., Any]) -> Callable[..., Any]:
    """An exchange that takes sizes as a tensor of the CPU: Megatron makes plain numbers of a GPU's alone."""

    def call(*args: Any, **options: Any) -> Any:
        plain = {
            key: value.tolist() if key.endswith("split_sizes") and isinstance(value, torch.Tensor) else value
            for key, value in options.items()
        }
        return exchange(*args, **plain)

    return call


@contextlib.contextmanager
def _fork_cpu_generator(tracker: Any, name: str = "model-parallel-rng") -> Iterator[None]:
    """Run the block on the named generator. Megatron's own warns that the CPU generator moved, as it must."""
    outside = torch.get_rng_state()
    torch.set_rng_state(tracker.states_[name])
    try:
        yield
    finally:
        tracker.states_[name] = torch.get_rng_state()
        torch.set_rng_state(outside)
