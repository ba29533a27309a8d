"""OPT divided over real ranks: its learned positions, its projections and its norms learn the same."""

import dataclasses

import pytest
import torch

from tests.helpers import megatron_cpu
from tests.helpers.megatron_cpu import Workshop, checkpoint_tensors, gradients, losses, relative_errors
from xelm_nemo.expert.job import TrainJob
from xelm_nemo.expert.loop import train
from xelm_nemo.model.config import ModelConfig, ParallelConfig

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="compares CPU ranks; CUDA_VISIBLE_DEVICES= hides the GPUs from them"
)
PRE_NORM = ModelConfig(
    architecture="opt",
    num_layers=2,
    hidden_size=32,
    ffn_hidden_size=64,
    num_attention_heads=4,
    activation="relu",
    max_position_embeddings=64,
    init_method_std=0.2,  # large, so that every layer shows in the loss
    hidden_dropout=0.0,
    attention_dropout=0.0,
)
SHAPES = {
    "pre_norm": PRE_NORM,
    "like_350m": dataclasses.replace(PRE_NORM, post_layernorm=True, word_embed_proj_dim=16),
}
LAYOUTS = {
    "tp2": ParallelConfig(tensor_model_parallel_size=2),
    "tp2_sp": ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True),
    "pp2": ParallelConfig(pipeline_model_parallel_size=2),
}
ON_FOUR_RANKS = ParallelConfig(
    tensor_model_parallel_size=2, pipeline_model_parallel_size=2, sequence_parallel=True
)
# Learned: 13 tensors of stacked layers; words and positions; the final norm or the two projections.
NUM_TENSORS = 12 + 2 + 2
RTOL = 1e-5


@pytest.fixture(scope="module")
def workshops(tmp_path_factory):
    """A seed model of each shape, trained for two iterations on one rank."""
    made = {}
    for name, shape in SHAPES.items():
        made[name] = Workshop(tmp_path_factory.mktemp(name))
        made[name].set_up(shape)
        train(TrainJob.load(made[name].job("tp1", shape, train_iters=2)))
    return made


def train_on_ranks(num_ranks, workshops, layouts):
    jobs = [
        workshop.job(name, SHAPES[shape], layout=layout, train_iters=2)
        for shape, workshop in workshops.items()
        for name, layout in layouts.items()
    ]
    megatron_cpu.on_ranks(num_ranks, megatron_cpu.train_in_turn, jobs, megatron_cpu.free_ports(len(jobs)))


@pytest.fixture(scope="module")
def divided(workshops):
    """The same on two ranks, at every layout of two."""
    train_on_ranks(2, workshops, LAYOUTS)
    return workshops


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_layout_changes_neither_losses_nor_gradients(divided, shape, layout):
    assert_learned_the_same(divided[shape].folder / layout, divided[shape].folder / "tp1")


@pytest.mark.slow
def test_four_ranks_learn_the_same(workshops):
    train_on_ranks(4, workshops, {"tp2_sp_pp2": ON_FOUR_RANKS})
    for workshop in workshops.values():
        assert_learned_the_same(workshop.folder / "tp2_sp_pp2", workshop.folder / "tp1")


def test_positions_that_no_token_is_at_are_not_changed_by_training(divided):
    for shape in SHAPES:
        before, after = (
            checkpoint_tensors(divided[shape].folder / name / "weights")[
                "module.embedding.position_embeddings.weight"
            ]
            for name in ("seed_model", "tp2_sp/model")
        )
        used = range(2, 2 + megatron_cpu.SEQ_LENGTH)
        changed = (before != after).any(1).nonzero().flatten().tolist()
        assert changed == list(used)


def assert_learned_the_same(job_folder, reference):
    assert losses(job_folder) == pytest.approx(losses(reference), rel=RTOL)
    expected = gradients(reference, iteration=1)
    assert len(expected) == NUM_TENSORS
    errors = relative_errors(gradients(job_folder, iteration=1), expected)
    assert {name: error for name, error in errors.items() if not error <= RTOL} == {}
