"""The two passes of the mixture at other block sizes, of which the kernels' defaults are one; GPUs only."""

from collections.abc import Callable
from functools import partial
from typing import Any

from xelm_kernels.ensemble_mixture import launch_mixture
from xelm_kernels.expert_rows import launch_expert_rows
from xelm_nemo.bench.mixture import Inputs, make_inputs
from xelm_nemo.bench.registry import Case, Provider, Sizes

# (block of the vocabulary, warps)
EXPERT_ROWS = [(2048, 4), (4096, 4), (4096, 8), (8192, 8), (8192, 16)]
MIXTURE = [(512, 2), (512, 4), (1024, 4), (1024, 8), (2048, 8), (4096, 8)]


def _rows(inputs: Inputs, **options: Any) -> Callable[[], None]:
    return partial(launch_expert_rows, inputs.logits_ETV, inputs.log_w_TE, inputs.target_T, **options)


def _mixture(inputs: Inputs, **options: Any) -> Callable[[], None]:
    lse, _ = launch_expert_rows(inputs.logits_ETV, inputs.log_w_TE)
    return partial(launch_mixture, inputs.logits_ETV, inputs.log_w_TE, lse, **options)


def providers(_: Sizes) -> list[Provider]:
    """The first pass at every block size, then the second."""
    return [
        Provider(f"{name}_{block}_{warps}", partial(prepare, block_v=block, num_warps=warps))
        for name, prepare, blocks in (("expert_rows", _rows, EXPERT_ROWS), ("mixture", _mixture, MIXTURE))
        for block, warps in blocks
    ]


CASE = Case(
    "mixture_blocks", {"experts": (8,), "tokens": (512,), "vocab": (256_008,)}, make_inputs, providers
)
