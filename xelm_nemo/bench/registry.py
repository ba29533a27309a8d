"""What can be measured, and the words of the command line that choose it."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xelm_nemo.errors import ConfigError

# Case -> its module, imported when it is asked for: peers take seconds to import.
CASES = {
    "assign": "xelm_nemo.bench.assign",
    "batch_router": "xelm_nemo.bench.batch_router",
    "evaluate": "xelm_nemo.bench.evaluate",
    "featurise": "xelm_nemo.bench.featurise",
    "kmeans": "xelm_nemo.bench.kmeans",
    "linear_cross_entropy": "xelm_nemo.bench.linear_cross_entropy",
    "linear_cross_entropy_parts": "xelm_nemo.bench.linear_cross_entropy_parts",
    "mixture": "xelm_nemo.bench.mixture",
    "mixture_blocks": "xelm_nemo.bench.mixture_blocks",
    "prefix_router": "xelm_nemo.bench.prefix_router",
    "shards": "xelm_nemo.bench.shards",
    "target_mixture": "xelm_nemo.bench.target_mixture",
}
Sizes = Mapping[str, Any]
WORDS = {"analyzer", "corpus", "model", "tokenizer", "verb"}  # sizes that are no numbers


@dataclass(frozen=True)
class Provider:
    """One way to do the operation.

    Attributes:
        name: as tables call it.
        prepare: inputs to a function without arguments that does it once. ImportError: not installed.
        flops: floating-point operations that the result needs, whatever the provider does.
        num_bytes: bytes of device memory that have to be moved for it, where memory is the limit.
        clock: gives the seconds of work that the host does; None: the device's own, or the wall's.
        facts: inputs, after a step, to what else its row says; "bytes" makes a speed.
    """

    name: str
    prepare: Callable[[Any], Callable[[], None]]
    flops: float = 0.0
    num_bytes: float = 0.0
    clock: Callable[[], float] | None = None
    facts: Callable[[Any], dict[str, Any]] | None = None


@dataclass(frozen=True)
class Case:
    """An operation with its providers; the first is the baseline of the ratios.

    Attributes:
        name: as the command line calls it.
        sizes: name to what is measured if nothing else is asked for.
        inputs: sizes to the inputs, the same for all providers.
        providers: sizes to those who do the operation.
        errors: inputs and a provider's step to its errors by name; None checks nothing.
        floor: the provider that does only what nobody can leave out.
        is_job: a step is a whole job: prepared anew, it runs once a round, without warm-ups.
    """

    name: str
    sizes: Mapping[str, Sequence[int | str]]
    inputs: Callable[[Sizes], Any]
    providers: Callable[[Sizes], Sequence[Provider]]
    errors: Callable[[Any, Callable[[], None]], dict[str, float]] | None = None
    floor: str | None = None
    is_job: bool = False


@dataclass
class Request:
    """What the command line asks for."""

    cases: list[str] = field(default_factory=list)
    sizes: dict[str, list[int] | list[str]] = field(default_factory=dict)
    only: list[str] | None = None
    rounds: int = 5
    json: Path | None = None


def load(name: str) -> Case:
    """The case of this name."""
    case: Case = importlib.import_module(CASES[name]).CASE
    return case


def parse(words: Sequence[str]) -> Request:
    """Read `CASE ... key=value ...`.

    Raises:
        ConfigError: a case or a value that cannot be.
    """
    request = Request()
    for word in words:
        key, equals, value = word.partition("=")
        if not equals and key in CASES:
            request.cases.append(key)
        elif not equals:
            raise ConfigError(f"case={key!r} is not one; use one of {sorted(CASES)}.")
        elif key == "only":
            request.only = value.split(",")
        elif key == "json":
            request.json = Path(value)
        elif key == "rounds":
            request.rounds, *more = _numbers(key, value)
            if more:
                raise ConfigError(f"{key}={value!r}: use one number.")
        else:
            request.sizes[key] = value.split(",") if key in WORDS else _numbers(key, value)
    if not request.cases:
        raise ConfigError(f"no case is named; name one or more of {sorted(CASES)}.")
    return request


def _numbers(key: str, value: str) -> list[int]:
    try:
        numbers = [int(number) for number in value.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise ConfigError(f"{key}={value!r}: use whole numbers from 1 on, separated by commas.")
    return numbers
