"""A whole training step at one layout after another, against stock Megatron-core in the same processes.

torchrun --nproc-per-node 4 -m xelm_nemo.bench train_step model=xglm_1_7b layouts=dp4,tp2_sp precision=bf16

Every provider has the same shape, batches, dropout and Adam, and takes its turn with the GPUs to itself. The
stock one is a GPTModel as Megatron's own scripts build it: Transformer Engine's layers and cross-entropy, an
even pipeline split, gradients that are reduced while others are computed, FP8 weights where products are in
FP8. TFLOP/s count what a step cannot do without: 6 operations a weight and token, embedding as head, and
causal attention at half; recomputation is not counted.
"""

import dataclasses
import gc
import json
import math
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from xelm_nemo import device, parallel
from xelm_nemo.bench.stock import stock_step
from xelm_nemo.bench.timing import Row, failure
from xelm_nemo.config.compose import compose
from xelm_nemo.errors import ConfigError
from xelm_nemo.expert.config import OptimConfig
from xelm_nemo.expert.data import Batch
from xelm_nemo.expert.optim import make_optimizer, wrap
from xelm_nemo.expert.step import train_step
from xelm_nemo.model.config import FP8Config, ModelConfig, ParallelConfig, layout_problems
from xelm_nemo.model.gpt import build_model

WARM_UPS = 2
Step = Callable[[], float]  # does one step; gives its loss


@dataclass(frozen=True)
class Setting:
    """One table row's work."""

    shape: ModelConfig
    layout: ParallelConfig
    fp8: FP8Config
    vocab_size: int
    seq_length: int
    micro_batch_size: int
    num_micro_batches: int

    @property
    def tokens(self) -> int:
        """Target tokens of a step, on all ranks."""
        sequences = self.micro_batch_size * self.num_micro_batches * self.layout.data_parallel_size
        return sequences * self.seq_length

    @property
    def flops(self) -> float:
        """Operations that a step cannot do without, on all ranks."""
        shape, S = self.shape, self.seq_length
        layer = 4 * shape.hidden_size**2 + 2 * shape.hidden_size * shape.ffn_hidden_size
        weights = shape.num_layers * layer + self.vocab_size * shape.hidden_size
        return 6.0 * self.tokens * (weights + shape.num_layers * S * shape.hidden_size)


def measure(setting: Setting, name: str, steps: int) -> Row:
    """One provider's row; all ranks of the world call it."""
    layout = setting.layout
    with parallel.model_parallel(
        tensor_model_parallel_size=layout.tensor_model_parallel_size,
        pipeline_model_parallel_size=layout.pipeline_model_parallel_size,
    ) as place:
        _forget_peak()
        torch.manual_seed(place.dp_rank)
        tokens = torch.randint(setting.vocab_size, (setting.micro_batch_size, setting.seq_length + 1))
        step = PROVIDERS[name](setting, tokens.to(device.device()))
        losses = [step() for _ in range(WARM_UPS)]
        times = [_seconds(step) for _ in range(steps)]
        row = _row(setting, statistics.median(times), dist.get_world_size())
        row |= {"losses": [round(loss, 4) for loss in losses], "peak_gib": _peak_gib()}
        del step
        gc.collect()
    return row


def _seconds(step: Step) -> float:
    parallel.barrier()
    start = time.perf_counter()
    step()  # which gives a number, and so waits for the device
    return time.perf_counter() - start


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


def _row(setting: Setting, seconds: float, gpus: int) -> Row:
    return {
        "step_ms": round(seconds * 1e3, 1),
        "tokens_per_s_per_gpu": round(setting.tokens / seconds / gpus),
        "tflops_per_gpu": round(setting.flops / seconds / gpus / 1e12),
    }


def _ours(setting: Setting, tokens: torch.Tensor) -> Step:
    """The training step of the experts."""
    model = wrap(
        build_model(
            setting.shape,
            setting.layout,
            vocab_size=setting.vocab_size,
            dtype=torch.bfloat16,
            fp8=setting.fp8,
        )
    )
    optimizer = make_optimizer(OptimConfig(), model)
    batch = {"tokens": tokens[:, :-1].contiguous(), "labels": tokens[:, 1:].contiguous()}
    model.train()

    def batches() -> Iterator[Batch]:
        while True:
            yield batch

    def step() -> float:
        loss, _ = train_step(model, optimizer, batches(), setting.num_micro_batches)
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


PROVIDERS: dict[str, Callable[[Setting, torch.Tensor], Step]] = {
    "stock": _stock,
    "stock_balanced": lambda setting, tokens: _stock(setting, tokens, balanced=True),
    "ours": _ours,
}

# --- The command line ------------------------------------------------------------------------------


@dataclass
class Request:
    """What the command line asks for."""

    model: str = "xglm_1_7b"
    layouts: str = ""  # such as dp4,tp2_sp,tp2_pp2_sp; what is left of the world is data parallel
    precision: str = "bf16"
    providers: str = "stock,ours"
    vocab_size: int = 256_008
    seq_length: int = 2048
    micro_batch_size: int = 4
    num_micro_batches: int = 4
    dropout: float = 0.0
    steps: int = 5
    rounds: int = 1
    json: str = ""


def run(words: Sequence[str]) -> None:
    """Measure what `key=value` words ask for; rank 0 prints a JSON object a row.

    Raises:
        ConfigError: a word that means nothing, or a layout that the model or the world does not have.
    """
    request, world = _parse(words), int(os.environ.get("WORLD_SIZE", 1))
    settings = list(_settings(request, world))
    ports = _Ports() if world > 1 else None
    turns = [(s, p) for _ in range(request.rounds) for s in settings for p in request.providers.split(",")]
    for (names, setting), provider in turns:
        if ports is not None:
            os.environ["MASTER_PORT"] = str(ports.agree())
        try:
            row = measure(setting, provider, request.steps)
        except Exception as error:  # whatever a peer may raise: the others are to be measured nonetheless
            row = {"failed": failure(error)}
        gc.collect()
        device.release()
        if int(os.environ.get("RANK", 0)) == 0:
            _show({**names, "provider": provider, **row}, request.json)


class _Ports:
    """A port of its own for every world: torchrun's store would hand each the keys of the one before."""

    def __init__(self) -> None:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self._store = TCPStore(host, port, is_master=False)
        self._count = 0
        os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"

    def agree(self) -> int:
        """The next port, one that was free on rank 0's machine."""
        self._count += 1
        key = f"train_step_port_{self._count}"
        if int(os.environ["RANK"]) == 0:
            with socket.socket() as probe:
                probe.bind(("", 0))
                self._store.set(key, str(probe.getsockname()[1]))
        return int(self._store.get(key))


def _show(row: Row, file: str) -> None:
    line = json.dumps(row) + "\n"
    sys.stdout.write(line)
    sys.stdout.flush()
    if file:
        with open(file, "a", encoding="utf-8") as lines:
            lines.write(line)


def _parse(words: Sequence[str]) -> Request:
    values: dict[str, Any] = {}
    kinds = {key: type(value) for key, value in dataclasses.asdict(Request()).items()}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in kinds:
            raise ConfigError(f"{word!r} means nothing here; write key=value with one of {sorted(kinds)}.")
        try:
            values[key] = kinds[key](value)
        except ValueError:
            raise ConfigError(f"{word!r}: {key} takes a number.") from None
    request = Request(**values)
    if unknown := set(request.providers.split(",")) - set(PROVIDERS):
        raise ConfigError(f"providers={request.providers!r} has {sorted(unknown)}; use {list(PROVIDERS)}.")
    return request


def _settings(request: Request, world: int) -> Iterator[tuple[Row, Setting]]:
    dropout = {"hidden_dropout": request.dropout, "attention_dropout": request.dropout}
    keys = ("vocab_size", "seq_length", "micro_batch_size", "num_micro_batches")
    sizes = {key: getattr(request, key) for key in keys}
    for precision in request.precision.split(","):
        choices = [f"model={request.model}", f"precision={precision}", "corpus=udhr", "seed_model=random"]
        config = compose(choices)
        shape, fp8 = dataclasses.replace(config.model, **dropout), config.precision.fp8
        for words in request.layouts.split(","):
            layout = _layout(words, world)
            if problems := layout_problems(shape, layout):
                raise ConfigError("; ".join(problems) + ".")
            names = {"model": request.model, "layout": words or "dp1", "gpus": world, "precision": precision}
            yield names | sizes, Setting(shape, layout, fp8, **sizes)


def _layout(words: str, world: int) -> ParallelConfig:
    sizes = {"tp": 1, "pp": 1, "dp": 0, "sp": 0}
    for part in filter(None, words.split("_")):
        name, number = part.rstrip("0123456789"), part.lstrip("abcdefghijklmnopqrstuvwxyz")
        if name not in sizes or (name == "sp") != (number == ""):
            raise ConfigError(f"layouts={words!r}: write such as dp4, tp2_sp or tp2_pp2_sp.")
        sizes[name] = int(number or 1)
    model = sizes["tp"] * sizes["pp"]
    dp = sizes["dp"] or math.ceil(world / model)
    if model * dp != world:
        raise ConfigError(f"layouts={words!r} is for {model * dp} ranks; start that many with torchrun.")
    return ParallelConfig(sizes["tp"], sizes["pp"], dp, bool(sizes["sp"]))
