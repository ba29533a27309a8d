"""Layouts of four and of eight ranks: the losses of one, and weights that move between them bit for bit."""

import pytest
import torch

from tests.helpers import megatron_cpu
from tests.helpers.megatron_cpu import Workshop, checkpoint_tensors, losses, moved
from tests.helpers.weights import assert_same_tensors
from tests.parallel.test_layouts import RTOL, SHAPE
from xelm_nemo.expert.job import TrainJob
from xelm_nemo.expert.loop import train
from xelm_nemo.model.config import ParallelConfig

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="its ranks are on a CPU"),
]
ON_FOUR = {
    "tp4_sp": ParallelConfig(4, sequence_parallel=True),
    "tp2_pp2_sp": ParallelConfig(2, 2, sequence_parallel=True),
    "tp2_sp_dp2": ParallelConfig(2, data_parallel_size=2, sequence_parallel=True),
    "pp2_dp2": ParallelConfig(pipeline_model_parallel_size=2, data_parallel_size=2),
    "dp4": ParallelConfig(data_parallel_size=4),
}
ON_EIGHT = {
    "tp2_pp2_sp_dp2": ParallelConfig(2, 2, data_parallel_size=2, sequence_parallel=True),
    "tp4_sp_dp2": ParallelConfig(4, data_parallel_size=2, sequence_parallel=True),
}
LENGTH = {"train_iters": 2, "save_interval": 2, "micro_batch_size": 1}
# Nothing is left to train there: what was saved at one layout is written as the model at another.
MOVES = {
    "tp2_pp2_on_tp4": ("tp2_pp2_sp", ON_FOUR["tp4_sp"]),
    "tp2_pp2_on_one": ("tp2_pp2_sp", ParallelConfig()),
    "tp2_pp2_dp2_on_one": ("tp2_pp2_sp_dp2", ParallelConfig()),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of every job and of every move, by name."""
    workshop = Workshop(tmp_path_factory.mktemp("many_ranks"))
    workshop.set_up(SHAPE)
    folders = {"alone": workshop.job("alone", SHAPE, **LENGTH)}
    train(TrainJob.load(folders["alone"]))
    for ranks, layouts in ((8, ON_EIGHT), (4, ON_FOUR)):
        jobs = {name: workshop.job(name, SHAPE, layout=layout, **LENGTH) for name, layout in layouts.items()}
        folders |= jobs
        on_ranks(ranks, jobs.values())
    folders |= {name: moved(folders[source], layout, name=name) for name, (source, layout) in MOVES.items()}
    on_ranks(4, [folders["tp2_pp2_on_tp4"]])
    for name in ("tp2_pp2_on_one", "tp2_pp2_dp2_on_one"):
        train(TrainJob.load(folders[name]))
    return folders


def on_ranks(count, folders):
    ports = megatron_cpu.free_ports(len(folders))
    megatron_cpu.on_ranks(count, megatron_cpu.train_in_turn, list(folders), ports)


@pytest.mark.parametrize("layout", [*ON_FOUR, *ON_EIGHT])
def test_layout_changes_no_loss(trained, layout):
    expected = losses(trained["alone"])
    assert ("loss", 2) in expected and ("valid_loss", 2) in expected
    assert losses(trained[layout]) == pytest.approx(expected, rel=RTOL)


@pytest.mark.parametrize("name", MOVES)
def test_weights_move_to_another_layout_bit_for_bit(trained, name):
    origin = trained[MOVES[name][0]]
    found, expected = (checkpoint_tensors(folder / "model/weights") for folder in (trained[name], origin))
    assert_same_tensors(found, expected)
