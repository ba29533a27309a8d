"""A whole training step at one layout after another, against stock Megatron-core in the same processes.

torchrun --nproc-per-node 4 -m xelm_nemo.bench train_step model=xglm_1_7b layouts=dp4,tp2_sp precision=bf16

python -m xelm_nemo.bench train_step model=xglm_564m num_moe_experts=8 providers=stock,ours,ours_sequential

measures the model's sparse forms too, beside a dense one of as many weights at work for a token (forms.py).

Every provider has the same shape, batches, dropout and Adam, and takes its turn with the GPUs to itself. The
stock one is a GPTModel as Megatron's own scripts build it: Transformer Engine's layers and cross-entropy, an
even pipeline split, gradients that are reduced while others are computed, FP8 weights where products are in
FP8. What TFLOP/s and MFU count is said in model/flops.py.
"""

import gc
import itertools
import os
import socket
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.transformer.moe.token_dispatcher import MoETokenDispatcher
from torch._C._distributed_c10d import TCPStore

from xelm_nemo import device, parallel
from xelm_nemo.bench.forms import forms
from xelm_nemo.bench.hugging_face import hugging_face_step
from xelm_nemo.bench.nemo_trainer import nemo_steps
from xelm_nemo.bench.setting import JobRequest, Setting, parse, settings, show
from xelm_nemo.bench.stock import stock_step
from xelm_nemo.bench.timing import Row, failure
from xelm_nemo.errors import ConfigError
from xelm_nemo.expert.config import OptimConfig
from xelm_nemo.expert.data import as_batch
from xelm_nemo.expert.graph import StepGraph, own_stream, why_no_graph
from xelm_nemo.expert.optim import make_optimizer, wrap
from xelm_nemo.expert.step import forward_backward, train_step
from xelm_nemo.model.config import SparseConfig
from xelm_nemo.model.flops import own_peak
from xelm_nemo.model.gpt import DecoderModel, build_model
from xelm_nemo.model.moe import gate_balance

WARM_UPS = 4  # of which a graph's last is recorded
Step = Callable[[], float]  # does one step; gives its loss


def measure(setting: Setting, name: str, steps: int) -> Row:
    """One provider's row; all ranks of the world call it."""
    found = PROVIDERS[name](setting, WARM_UPS + steps)
    row = _row(setting, statistics.median(found["seconds"][WARM_UPS:]))
    row |= {key: found[key] for key in ("graphed", "moe_products", "moe_dropped") if key in found}
    return row | {"losses": found["losses"][:WARM_UPS], "peak_gib": found["peak_gib"]}


def _steps(
    make: Callable[[Setting, torch.Tensor], Step], setting: Setting, steps: int, *, graphed: bool = False
) -> dict[str, Any]:
    """`seconds` and `losses` of a provider's first steps, and `peak_gib`, None without a GPU."""
    layout = setting.layout
    with (
        parallel.model_parallel(
            tensor_model_parallel_size=layout.tensor_model_parallel_size,
            pipeline_model_parallel_size=layout.pipeline_model_parallel_size,
            graphed=graphed,
        ) as place,
        own_stream(),
    ):
        _forget_peak()
        torch.manual_seed(place.dp_rank)
        tokens = torch.randint(setting.vocab_size, (setting.micro_batch_size, setting.seq_length + 1))
        step = make(setting, tokens.to(device.device()))
        seconds, losses = zip(*(_timed(step) for _ in range(steps)), strict=True)
        found = {"seconds": seconds, "losses": losses, "peak_gib": _peak_gib()}
        del step
        _let_go_of_models()
    return found


def _let_go_of_models() -> None:
    """Free the memory of what was measured.

    Megatron's dispatchers keep the weights that gates gave last, whose autograd graph leads to the parameters
    and by their hooks back to the model: a ring that Python's collector does not see through.
    """
    for dispatcher in filter(_is_dispatcher, gc.get_objects()):
        for name, value in list(vars(dispatcher).items()):
            if isinstance(value, torch.Tensor):
                setattr(dispatcher, name, None)
    gc.collect()


def _is_dispatcher(found: Any) -> bool:
    # isinstance() would ask an object that is gone, if what is found is a proxy of it.
    return issubclass(type(found), MoETokenDispatcher)


def _timed(step: Step) -> tuple[float, float]:
    """Seconds and loss of a step."""
    parallel.barrier()
    start = time.perf_counter()
    loss = step()  # a number, so it waits for the device
    return time.perf_counter() - start, round(loss, 4)


def _forget_peak() -> None:
    if device.has_cuda():
        torch.cuda.reset_peak_memory_stats()


def _peak_gib() -> float | None:
    """Of the rank that took most."""
    if not device.has_cuda():
        return None
    peak = torch.tensor(torch.cuda.max_memory_allocated() / 2**30, device=device.device())
    dist.all_reduce(peak, dist.ReduceOp.MAX)
    return round(float(peak), 1)


def _row(setting: Setting, seconds: float) -> Row:
    gpus = setting.layout.num_ranks
    flops = setting.flops / seconds / gpus
    row = {
        "step_ms": round(seconds * 1e3, 1),
        "tokens_per_s_per_gpu": round(setting.tokens / seconds / gpus),
        "tflops_per_gpu": round(flops / 1e12),
    }
    peak = own_peak()
    return row if peak is None else row | {"mfu": round(flops / peak, 3)}


def our_model(
    setting: Setting, *, overlap_param_gather: bool = True, grouped: bool = True
) -> tuple[DecoderModel, Any, Any]:
    """An expert, the wrapper that it is trained in, and its optimizer."""
    sizes: dict[str, Any] = {"vocab_size": setting.vocab_size, "dtype": torch.bfloat16, "fp8": setting.fp8}
    core = build_model(setting.shape, setting.layout, grouped=grouped, **sizes)
    model = wrap(core, overlap_param_gather=overlap_param_gather)
    return core, model, make_optimizer(OptimConfig(), model)


def _our_steps(setting: Setting, steps: int, *, eager: bool = False, grouped: bool = True) -> dict[str, Any]:
    """The experts' steps, as CUDA graphs where they can be."""
    is_sparse = isinstance(setting.shape, SparseConfig)
    facts_of: dict[str, Any] = {"is_sparse": is_sparse, "fp8": setting.fp8}
    reason = why_no_graph(setting.layout, seq_length=setting.seq_length, **facts_of)
    graphed, facts = not eager and reason is None, dict[str, Any]()
    found = _steps(
        partial(_ours, graphed=graphed, grouped=grouped, facts=facts), setting, steps, graphed=graphed
    )
    return found | {"graphed": graphed} | facts


def _ours(
    setting: Setting, tokens: torch.Tensor, *, graphed: bool, grouped: bool, facts: dict[str, Any]
) -> Step:
    """The training step of the experts; facts are what the first one finds of moe_experts."""
    core, model, optimizer = our_model(setting, overlap_param_gather=not graphed, grouped=grouped)
    graph = StepGraph(partial(forward_backward, model, setting.num_micro_batches)) if graphed else None
    batch = as_batch(tokens)
    model.train()

    def step() -> float:
        batches = itertools.repeat(batch, setting.num_micro_batches)
        loss, _ = train_step(model, optimizer, batches, setting.num_micro_batches, graph=graph)
        if isinstance(setting.shape, SparseConfig) and not facts:
            tp = setting.layout.tensor_model_parallel_size
            dropped = gate_balance(core, tensor_model_parallel_size=tp)["moe_dropped"]
            products = "grouped" if core.config.moe_grouped_gemm else "sequential"
            facts.update(moe_dropped=round(dropped, 3), moe_products=products)
        return float(loss)

    return step


def _stock(setting: Setting, tokens: torch.Tensor, *, balanced: bool = False) -> Step:
    return stock_step(
        setting.shape,
        setting.layout,
        setting.fp8.recipe,
        tokens,
        setting.num_micro_batches,
        vocab_size=setting.vocab_size,
        balanced=balanced,
    )


def _hugging_face(setting: Setting, tokens: torch.Tensor) -> Step:
    return hugging_face_step(
        setting.shape, setting.layout, tokens, setting.num_micro_batches, vocab_size=setting.vocab_size
    )


# Each measures so many steps of a setting; NeMo's trainer takes a process of its own for it.
PROVIDERS: dict[str, Callable[[Setting, int], dict[str, Any]]] = {
    "stock": partial(_steps, _stock),
    "stock_balanced": partial(_steps, partial(_stock, balanced=True)),
    "hugging_face": partial(_steps, _hugging_face),
    "ours": _our_steps,
    "ours_eager": partial(_our_steps, eager=True),
    "ours_sequential": partial(_our_steps, grouped=False),
    "nemo": nemo_steps,
}

OF_SPARSE = {"ours_sequential"}  # differ from others where there are moe_experts

# --- The command line ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Request(JobRequest):
    """What the command line asks for."""

    providers: str = "stock,ours"
    num_moe_experts: int = 0  # more: the model's sparse forms are measured too
    moe_capacities: str = "1.0,null"  # those forms' moe_expert_capacity_factor


def run(words: Sequence[str]) -> None:
    """Measure what `key=value` words ask for; rank 0 prints a JSON object a row.

    Raises:
        ConfigError: a word that means nothing, or a layout that the model or the world does not have.
    """
    request, world = parse(words, Request()), int(os.environ.get("WORLD_SIZE", 1))
    if unknown := set(request.providers.split(",")) - PROVIDERS.keys():
        raise ConfigError(f"providers={request.providers!r} has {sorted(unknown)}; use {list(PROVIDERS)}.")
    sparse: Any = {"num_moe_experts": request.num_moe_experts, "capacities": request.moe_capacities}
    jobs = [
        (names | form, shaped)
        for names, setting in settings(request, world)
        for form, shaped in forms(setting, **sparse)
    ]
    ports = Ports() if world > 1 else None
    turns = [(s, p) for _ in range(request.rounds) for s in jobs for p in request.providers.split(",")]
    for (names, setting), provider in turns:
        if provider in OF_SPARSE and not isinstance(setting.shape, SparseConfig):
            continue
        if ports is not None:
            os.environ["MASTER_PORT"] = str(ports.agree())
        try:
            row = measure(setting, provider, request.steps)
        except Exception as error:  # whatever a peer may raise: the others are to be measured nonetheless
            row = {"failed": failure(error)}
        gc.collect()
        device.release()
        if int(os.environ.get("RANK", 0)) == 0:
            show({**names, "provider": provider, **row}, request.json)


class Ports:
    """A port of its own for every world: torchrun's store would hand each the keys of the one before."""

    def __init__(self) -> None:
        """Meet the other ranks at torchrun's own."""
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self._store = TCPStore(host, port, is_master=False)
        self._count = 0
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"

    def agree(self) -> int:
        """The next port, one that was free on rank 0's machine."""
        self._count += 1
        key = f"port_{self._count}"
        if int(os.environ["RANK"]) == 0:
            with socket.socket() as probe:
                probe.bind(("", 0))
                self._store.set(key, str(probe.getsockname()[1]))
        return int(self._store.get(key))
