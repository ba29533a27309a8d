"""One model divided over real GPUs: the same losses, and weights that move between layouts bit for bit."""

import pytest
import torch

from tests.helpers import megatron_cpu
from tests.helpers.megatron_cpu import Workshop, checkpoint_tensors, losses, moved
from tests.helpers.weights import assert_same_tensors
from xelm_nemo.expert.job import TrainJob
from xelm_nemo.expert.loop import train
from xelm_nemo.model.config import FP8Config, ModelConfig, ParallelConfig

pytestmark = pytest.mark.multigpu
SHAPE = ModelConfig(
    num_layers=4,
    hidden_size=256,
    ffn_hidden_size=1024,
    num_attention_heads=4,
    max_position_embeddings=64,
    hidden_dropout=0.0,
    attention_dropout=0.0,
)
ITERATIONS = 4
ON_TWO = {
    "tp2_sp": ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True),
    "pp2": ParallelConfig(pipeline_model_parallel_size=2),
    "dp2": ParallelConfig(data_parallel_size=2),
}
ON_FOUR = {
    "tp4_sp": ParallelConfig(tensor_model_parallel_size=4, sequence_parallel=True),
    "tp2_pp2_sp": ParallelConfig(2, 2, sequence_parallel=True),
    "pp4": ParallelConfig(pipeline_model_parallel_size=4),
    "dp2_pp2": ParallelConfig(pipeline_model_parallel_size=2, data_parallel_size=2),
    "tp2_sp_dp2": ParallelConfig(2, data_parallel_size=2, sequence_parallel=True),
    "dp4": ParallelConfig(data_parallel_size=4),
}
ON_EIGHT = {
    "tp2_pp2_sp_dp2": ParallelConfig(2, 2, data_parallel_size=2, sequence_parallel=True),
    "tp4_sp_dp2": ParallelConfig(4, data_parallel_size=2, sequence_parallel=True),
}
BY_RANKS = {2: ON_TWO, 4: ON_FOUR, 8: ON_EIGHT}
LAYOUTS = {
    name: layout
    for ranks, layouts in BY_RANKS.items()
    if torch.cuda.device_count() >= ranks
    for name, layout in layouts.items()
}
LENGTH = {"dtype": "bf16", "train_iters": ITERATIONS, "save_interval": ITERATIONS}
PRECISIONS = {
    "bf16": {},
    "fp8": {"fp8": FP8Config(recipe="delayed", head=True)},
    "masked": {"document_mask": True},  # in BF16
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of every job, by precision and layout."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    workshop = Workshop(tmp_path_factory.mktemp("layouts"))
    workshop.set_up(SHAPE)
    folders = {}
    for ranks, layouts in BY_RANKS.items():
        here = {name: layout for name, layout in layouts.items() if name in LAYOUTS}
        jobs = {
            (precision, name): workshop.job(f"{precision}_{name}", SHAPE, layout=layout, **LENGTH | options)
            for precision, options in PRECISIONS.items()
            for name, layout in here.items()
        }
        if jobs:
            ports = megatron_cpu.free_ports(len(jobs))
            megatron_cpu.on_ranks(ranks, megatron_cpu.train_in_turn, list(jobs.values()), ports)
        folders |= jobs
    for precision, options in PRECISIONS.items():
        folders[precision, "alone"] = workshop.job(f"{precision}_alone", SHAPE, **LENGTH | options)
        train(TrainJob.load(folders[precision, "alone"]))
    return folders


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("precision, rtol", [("bf16", 2e-3), ("fp8", 1e-2), ("masked", 2e-3)])
def test_layout_changes_the_losses_by_a_rounding(trained, precision, rtol, layout):
    found, expected = losses(trained[precision, layout]), losses(trained[precision, "alone"])
    assert ("loss", ITERATIONS) in expected
    assert found == pytest.approx(expected, rel=rtol)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "dp2"])
def test_weights_move_to_one_rank_bit_for_bit(trained, layout):
    """A checkpoint taken up at another layout, with no step left, becomes the same model."""
    origin = trained["bf16", layout]
    copy = moved(origin, ParallelConfig(), name=f"{layout}_on_one")
    train(TrainJob.load(copy))
    assert_same_model(copy, origin)


@pytest.mark.skipif("tp4_sp" not in LAYOUTS, reason="needs four GPUs")
def test_weights_move_from_tp2_pp2_to_tp4_bit_for_bit(trained):
    origin = trained["bf16", "tp2_pp2_sp"]
    copy = moved(origin, ON_FOUR["tp4_sp"], name="tp2_pp2_on_tp4")
    megatron_cpu.on_ranks(4, megatron_cpu.train_in_turn, [copy], megatron_cpu.free_ports(1))
    assert_same_model(copy, origin)


def assert_same_model(folder, origin):
    assert_same_tensors(*(checkpoint_tensors(place / "model/weights") for place in (folder, origin)))
