"""A training job to measure: its words on the command line, its sizes, and its row in a file."""

import dataclasses
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from xelm_nemo.bench.timing import Row
from xelm_nemo.config.compose import compose
from xelm_nemo.errors import ConfigError
from xelm_nemo.model.config import FP8Config, ModelConfig, ParallelConfig, layout_problems
from xelm_nemo.model.flops import training_flops


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
        return self.tokens * training_flops(self.shape, self.vocab_size, self.seq_length)


@dataclass(frozen=True)
class JobRequest:
    """What the command line asks for; several layouts and precisions are separated by commas."""

    model: str = "xglm_1_7b"
    layouts: str = ""  # such as dp4,tp2_sp,tp2_pp2_sp; what is left of the world is data parallel
    precision: str = "bf16"
    vocab_size: int = 256_008
    seq_length: int = 2048
    micro_batch_size: int = 4
    num_micro_batches: int = 4
    dropout: float = 0.0
    steps: int = 5
    rounds: int = 1
    json: str = ""


def parse(words: Sequence[str], default: Any) -> Any:
    """`key=value` words over a default, a dataclass whose values are texts and numbers.

    Raises:
        ConfigError: a word that means nothing here.
    """
    values: dict[str, Any] = {}
    kinds = {key: type(value) for key, value in dataclasses.asdict(default).items()}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in kinds:
            raise ConfigError(f"{word!r} means nothing here; write key=value with one of {sorted(kinds)}.")
        try:
            values[key] = kinds[key](value)
        except ValueError:
            raise ConfigError(f"{word!r}: {key} takes a number.") from None
    return dataclasses.replace(default, **values)


def settings(request: JobRequest, world: int) -> Iterator[tuple[Row, Setting]]:
    """The jobs that a request asks for on so many ranks, each with what its row says of it.

    Raises:
        ConfigError: a layout that the model or the world does not have.
    """
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


def show(row: Row, file: str) -> None:
    """Print a row as JSON, and add it to a file if one is named."""
    line = json.dumps(row) + "\n"
    sys.stdout.write(line)
    sys.stdout.flush()
    if file:
        with open(file, "a", encoding="utf-8") as lines:
            lines.write(line)
