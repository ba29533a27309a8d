"""Balanced k-means: seconds of a fit and of its parts, and its cost beside that of upstream's algorithm.

python -m xelm_nemo.bench.kmeans [n=1000000] [k=16,32,64,128]

One JSON object a number of clusters. Upstream's centroids get the cheapest balanced assignment of all
documents, which its auction does not find, so `upstream_cost` flatters it.
"""

import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from xelm_nemo import _csrc, command
from xelm_nemo.bench.upstream_kmeans import upstream_centroids
from xelm_nemo.clustering import balance, kmeans
from xelm_nemo.device import device


def measure_kmeans(
    n: int, k: int, *, dim: int = 100, num_starts: int = 1, max_iterations: int = 20, seed: int = 0
) -> dict[str, Any]:
    """Fit once to warm up on few documents, then once for time; see the module for the rows.

    Args:
        n: documents; unit vectors in groups of uneven size.
        k: clusters.
        dim: of the vectors.
        num_starts: as `balanced_kmeans`.
        max_iterations: as `balanced_kmeans`.
        seed: of the vectors and of the fit.
    """
    vectors = uneven_groups(n, dim, seed)
    settings: dict[str, Any] = {"seed": seed, "num_starts": num_starts, "max_iterations": max_iterations}
    kmeans.balanced_kmeans(vectors[: max(k, min(n, 200 * k))], k, **settings)
    parts = _Parts()
    started = time.perf_counter()
    with parts.watched():
        fit = kmeans.balanced_kmeans(vectors, k, **settings)
    seconds = time.perf_counter() - started
    upstream_seconds, upstream = _upstream(vectors, k, seed)
    return {
        "case": "kmeans",
        "device": str(device()),
        **{"n": n, "k": k, "dim": dim, "num_starts": num_starts},
        "seconds": round(seconds, 3),
        "seconds_of": {name: round(spent, 3) for name, spent in parts.seconds.items()},
        "calls_of": dict(parts.calls),
        "smallest": int(fit.sizes.min()),
        "largest": int(fit.sizes.max()),
        "upstream_seconds": round(upstream_seconds, 3),
        "cost": round(fit.cost / n, 6),
        "upstream_cost": round(upstream / n, 6),
        "cost_ratio": round(fit.cost / upstream, 5),
    }


def uneven_groups(n: int, dim: int, seed: int) -> NDArray[np.float32]:
    """[n, dim] unit vectors around 200 directions, some of which are much more frequent than others."""
    rng = np.random.default_rng(seed)
    center = rng.normal(size=(200, dim)) * rng.exponential(size=dim)
    group = rng.choice(200, n, p=rng.dirichlet(np.full(200, 0.7)))
    vectors = center.astype(np.float32)[group] + 0.7 * rng.standard_normal((n, dim), np.float32)
    unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


class _Parts:
    """Seconds spent in the functions of a fit; waiting for the device costs a fit a few per cent."""

    WATCHED = (
        *((kmeans, name) for name in ("_plus_plus_start", "balanced_assignment")),
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


def _upstream(vectors: NDArray[np.float32], k: int, seed: int) -> tuple[float, float]:
    """Seconds that upstream's algorithm takes, and the least cost that its centroids allow."""
    points = kmeans._Points(torch.as_tensor(vectors).to(device()))
    _wait()
    started = time.perf_counter()
    centroids = upstream_centroids(points.vectors, k, seed)
    _wait()
    seconds = time.perf_counter() - started
    cost = points.costs(centroids)
    chosen = balance.balanced_assignment(cost)[0]
    return seconds, points.means(chosen, k)[1]


def main() -> None:
    """Print a row for each number of clusters."""
    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    for k in given.get("k", "16,32,64,128").split(","):
        sys.stdout.write(json.dumps(measure_kmeans(int(given.get("n", 1_000_000)), int(k))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(command.run(main))
