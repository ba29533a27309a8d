"""Layers' matrices in FP8 on two ranks, a part of each master on each: the models are the masters."""

import pytest
import torch

from tests.helpers import fp8_weights
from tests.helpers.megatron_cpu import Workshop, free_ports, losses, moved, on_ranks
from tests.parallel.test_layouts import SHAPE
from xelm_nemo.model.config import FP8Config, ParallelConfig

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="its ranks are on a CPU")
LAYOUTS = {
    "dp2": ParallelConfig(data_parallel_size=2),
    "tp2_sp": ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True),
    "pp2": ParallelConfig(pipeline_model_parallel_size=2),  # both have words, and masters of them
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Jobs of two ranks, one of a single rank, and its checkpoint taken up by two before the last step."""
    workshop = Workshop(tmp_path_factory.mktemp("fp8_weights"))
    workshop.set_up(SHAPE)
    settings = {"dtype": "bf16", "train_iters": 3, "fp8": FP8Config(param_gather=True)}
    folders = {"alone": workshop.job("alone", SHAPE, **settings)}
    fp8_weights.train_in_turn(list(folders.values()), ["0"])
    two = {name: workshop.job(name, SHAPE, layout=layout, **settings) for name, layout in LAYOUTS.items()}
    two["moved"] = moved(folders["alone"], LAYOUTS["dp2"], name="moved", without=["iter_0000003"])
    on_ranks(2, fp8_weights.train_in_turn, list(two.values()), free_ports(len(two)))
    return folders | two


@pytest.mark.parametrize("name", [*LAYOUTS, "moved"])
def test_finished_model_is_the_masters_of_all_ranks_in_bf16(folders, name):
    fp8_weights.assert_model_is_the_masters(folders[name], 3)


@pytest.mark.parametrize("name", [*LAYOUTS, "moved"])
def test_layout_changes_the_losses_by_a_rounding(folders, name):
    expected = losses(folders["alone"])
    assert ("loss", 3) in expected
    assert losses(folders[name]) == pytest.approx(expected, rel=2e-3)
