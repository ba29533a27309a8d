"""Router weights of sparse tf-idf rows, against torch's sparse product, and against upstream's broadcast.

All begin with the rows on the device. `eager` is a product of a sparse matrix, a norm, a product with the
centroids and a softmax; `upstream` takes the differences of all vectors and centroids, [N, K, D]. On a GPU
both sides are also taken as a CUDA graph, without the time that the host takes to launch what is to be done.
GB/s count the rows once and the vector of each entry's term.

Columns are drawn as words occur: the r-th term with a probability like 1 / r.
Shape letters: N documents, F terms, D dimensions, K clusters.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from xelm_kernels.router_score import router_score, squared_distances_ref, weights_ref
from xelm_nemo import device
from xelm_nemo.bench.registry import Case, Provider, Sizes

SIZES = {
    "documents": (65_536, 32_768, 1024, 64),
    "experts": (16, 128),
    "terms": (500_000,),
    "entries": (100,),
    "dims": (100,),
}
TEMPERATURE = 0.1
CHECKED = 1000  # rows: all of them would take long in float64


@dataclass
class Inputs:
    """The rows, the table in two precisions, and the weights of the last step."""

    starts: Tensor
    columns: Tensor
    values: Tensor
    table_FD: Tensor
    half_FD: Tensor
    centroids_KD: Tensor
    result_NK: Tensor | None = None


def make_inputs(sizes: Sizes) -> Inputs:
    """Rows of between half and one and a half times `entries`, of length 1."""
    N, F, D, K = (sizes[key] for key in ("documents", "terms", "dims", "experts"))
    place = device.device()
    torch.manual_seed(0)
    mean = sizes["entries"]
    lengths_N = torch.randint(mean // 2, mean + mean // 2 + 1, (N,), device=place)
    starts = torch.cat([lengths_N.new_zeros(1), lengths_N.cumsum(0)])
    # exp(u log F) has a density like 1 / r
    columns = (torch.rand(int(starts[-1]), device=place) * torch.log(torch.tensor(F))).exp().long() - 1
    values = torch.rand(len(columns), device=place) + 1
    rows = torch.repeat_interleave(torch.arange(N, device=place), lengths_N)
    squares_N = values.new_zeros(N).index_add_(0, rows, values.square())
    table_FD = torch.randn(F, D, device=place)
    centroids_KD = torch.randn(K, D, device=place) / (2 * D**0.5)
    values /= squares_N.sqrt()[rows]
    return Inputs(starts, columns.int(), values, table_FD, table_FD.half(), centroids_KD)


def _sparse_vectors(inputs: Inputs) -> Tensor:
    size = (len(inputs.starts) - 1, len(inputs.table_FD))
    rows = torch.sparse_csr_tensor(inputs.starts.int(), inputs.columns, inputs.values, size)
    return torch.nn.functional.normalize(rows @ inputs.table_FD, dim=1)


def _eager(inputs: Inputs) -> Tensor:
    z_ND, c_KD = _sparse_vectors(inputs), inputs.centroids_KD
    distance_NK = z_ND.square().sum(1, True) + c_KD.square().sum(1) - 2 * z_ND @ c_KD.T
    return torch.softmax(-distance_NK.square() / TEMPERATURE, -1)


def _upstream(inputs: Inputs) -> Tensor:
    distance_NK = (_sparse_vectors(inputs)[:, None] - inputs.centroids_KD).square().sum(-1)
    return torch.softmax(-distance_NK.square() / TEMPERATURE, -1)


def _ours(inputs: Inputs, table_FD: Tensor) -> Tensor:
    rows = inputs.starts, inputs.columns, inputs.values
    weights_NK: Tensor = router_score(*rows, table_FD, inputs.centroids_KD, temperature=TEMPERATURE)
    return weights_NK


WAYS: dict[str, Callable[[Inputs], Tensor]] = {
    "eager": _eager,
    "upstream": _upstream,
    "ours": lambda inputs: _ours(inputs, inputs.half_FD),
    "ours_float32": lambda inputs: _ours(inputs, inputs.table_FD),
}


def providers(sizes: Sizes) -> list[Provider]:
    """Eager first."""
    entries = float(sizes["documents"] * sizes["entries"])
    num_bytes = {name: entries * (8 + sizes["dims"] * (2 if name == "ours" else 4)) for name in WAYS}
    found = [Provider(name, _prepared(way), num_bytes=num_bytes[name]) for name, way in WAYS.items()]
    if device.has_cuda():
        found += [
            Provider(f"{name}_graph", _graphed(WAYS[name]), num_bytes=num_bytes[name])
            for name in ("eager", "ours")
        ]
    return found


def _prepared(way: Callable[[Inputs], Tensor]) -> Callable[[Inputs], Callable[[], None]]:
    def prepare(inputs: Inputs) -> Callable[[], None]:
        def step() -> None:
            inputs.result_NK = None
            inputs.result_NK = way(inputs)

        return step

    return prepare


def _graphed(way: Callable[[Inputs], Tensor]) -> Callable[[Inputs], Callable[[], None]]:
    def prepare(inputs: Inputs) -> Callable[[], None]:
        way(inputs)  # compiles, and gets the libraries' own memory
        graph: Any = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result_NK = way(inputs)

        def step() -> None:
            graph.replay()
            inputs.result_NK = result_NK

        return step

    return prepare


def errors(inputs: Inputs, step: Callable[[], None]) -> dict[str, float]:
    """The largest difference of a weight from the definition in float64, in the first rows."""
    step()
    assert inputs.result_NK is not None
    starts = inputs.starts[: CHECKED + 1]
    end = int(starts[-1])
    rows = starts, inputs.columns[:end], inputs.values[:end]
    distance_NK = squared_distances_ref(*rows, inputs.table_FD, inputs.centroids_KD)
    truth_NK = weights_ref(distance_NK, 2, TEMPERATURE, None)
    return {"largest": float((inputs.result_NK[:CHECKED].double() - truth_NK).abs().max())}


CASE = Case("batch_router", SIZES, make_inputs, providers, errors)
