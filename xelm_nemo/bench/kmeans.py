"""Balanced k-means: a fit and its parts, and its cost beside that of upstream's algorithm.

Upstream's centroids get the cheapest balanced assignment of all documents, which its auction does not find,
so that the cost of ours is compared with less than upstream's.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xelm_nemo import _csrc
from xelm_nemo.bench.registry import Case, Provider, Sizes
from xelm_nemo.bench.upstream_kmeans import upstream_centroids
from xelm_nemo.clustering import balance, kmeans
from xelm_nemo.device import device

SETTINGS: dict[str, Any] = {"seed": 0, "num_starts": 4, "max_iterations": 20}  # as clustering.*


@dataclass
class Inputs:
    """The documents, and the cost of the last fit."""

    vectors: NDArray[np.float32]
    num_clusters: int
    cost: float = 0.0
    upstream_cost: float | None = None


def make_inputs(sizes: Sizes) -> Inputs:
    """Unit vectors in groups of uneven size; a fit of few of them warms up."""
    n, k = sizes["documents"], sizes["clusters"]
    vectors = uneven_groups(n, sizes["dim"], SETTINGS["seed"])
    kmeans.balanced_kmeans(vectors[: max(k, min(n, 200 * k))], k, **SETTINGS)
    return Inputs(vectors, k)


def uneven_groups(n: int, dim: int, seed: int) -> NDArray[np.float32]:
    """[n, dim] unit vectors around 200 directions, some of which are much more frequent than others."""
    rng = np.random.default_rng(seed)
    center = rng.normal(size=(200, dim)) * rng.exponential(size=dim)
    group = rng.choice(200, n, p=rng.dirichlet(np.full(200, 0.7)))
    vectors = center.astype(np.float32)[group] + 0.7 * rng.standard_normal((n, dim), np.float32)
    unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def _ours(inputs: Inputs) -> Callable[[], None]:
    def step() -> None:
        inputs.cost = kmeans.balanced_kmeans(inputs.vectors, inputs.num_clusters, **SETTINGS).cost

    return step


def _upstream(inputs: Inputs) -> Callable[[], None]:
    points = kmeans._Points(torch.as_tensor(inputs.vectors).to(device()))

    def step() -> None:
        centroids = upstream_centroids(points.vectors, inputs.num_clusters, SETTINGS["seed"])
        if inputs.upstream_cost is None:
            inputs.upstream_cost = _least_cost(points, centroids)
        inputs.cost = inputs.upstream_cost

    return step


def _least_cost(points: kmeans._Points, centroids: Tensor) -> float:
    """The least that centroids allow with clusters of equal sizes."""
    chosen = balance.balanced_assignment(points.costs(centroids))[0]
    return points.means(chosen, len(centroids))[1]


def errors(inputs: Inputs, _: Callable[[], None]) -> dict[str, float]:
    """By how much the last fit costs more than upstream's centroids allow, of that."""
    if not inputs.upstream_cost:
        return {}
    return {"cost": inputs.cost / inputs.upstream_cost - 1}


def facts(inputs: Inputs) -> dict[str, Any]:
    """Of one more fit of ours: sizes, and the parts' seconds and calls."""
    parts = _Parts()
    with parts.watched():
        fit = kmeans.balanced_kmeans(inputs.vectors, inputs.num_clusters, **SETTINGS)
    return {
        "seconds_of": {name: round(spent, 3) for name, spent in parts.seconds.items()},
        "calls_of": dict(parts.calls),
        "smallest": int(fit.sizes.min()),
        "largest": int(fit.sizes.max()),
    }


class _Parts:
    """Seconds spent in the functions of a fit; waiting for the device costs a fit a few per cent."""

    WATCHED = (
        (kmeans, "_plus_plus_start"),
        *((kmeans, f"{kind}balanced_assignment") for kind in ("", "nearly_")),
        *((kmeans._Points, name) for name in ("costs", "means")),
        *((balance, name) for name in ("balancing_prices", "_look")),
        (_csrc, "balanced_assign"),
    )

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)

    def watched(self) -> "_Patched":
        return _Patched(
            {(owner, name): self._timed(name, getattr(owner, name)) for owner, name in self.WATCHED}
        )

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            _wait()
            started = time.perf_counter()
            result = function(*args, **kwargs)
            _wait()
            self.seconds[name] += time.perf_counter() - started
            self.calls[name] += 1
            return result

        return timed


class _Patched:
    def __init__(self, replaced: dict[tuple[Any, str], Callable[..., Any]]) -> None:
        self.replaced = replaced

    def __enter__(self) -> None:
        self.before = {(owner, name): getattr(owner, name) for owner, name in self.replaced}
        for (owner, name), function in self.replaced.items():
            setattr(owner, name, function)

    def __exit__(self, *error: object) -> None:
        for (owner, name), function in self.before.items():
            setattr(owner, name, function)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def providers(_: Sizes) -> list[Provider]:
    """Upstream's algorithm first."""
    return [Provider("upstream", _upstream), Provider("ours", _ours, facts=facts)]


CASE = Case(
    name="kmeans",
    sizes={"documents": (1_000_000,), "clusters": (16, 32, 64, 128), "dim": (100,)},
    inputs=make_inputs,
    providers=providers,
    errors=errors,
    is_job=True,
)
