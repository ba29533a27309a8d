"""Steps that a CUDA graph runs: the bits of steps without one, dropout and FP8's scales included."""

import logging

import pytest
import torch

from tests.helpers import megatron_cpu
from tests.helpers.megatron_cpu import Workshop, checkpoint_tensors, losses
from tests.helpers.weights import assert_same_tensors
from xelm_nemo.expert.graph import RECORDED, WARM_UPS, why_no_graph
from xelm_nemo.expert.job import TrainJob
from xelm_nemo.expert.loop import train
from xelm_nemo.model.config import FP8Config, ModelConfig, ParallelConfig

SHAPE = ModelConfig(
    num_layers=4, hidden_size=256, ffn_hidden_size=1024, num_attention_heads=4, max_position_embeddings=256
)
LENGTH = {"seq_length": 128, "train_iters": WARM_UPS + 4, "save_interval": 2, "eval_interval": 3}
SETTINGS = {
    "bf16": {},
    "fp8": {"fp8": FP8Config(recipe="delayed", head=True)},
}
ON_TWO = {
    "tp2_sp": ParallelConfig(tensor_model_parallel_size=2, sequence_parallel=True),
    "dp2": ParallelConfig(data_parallel_size=2),
}


@pytest.fixture
def workshop(tmp_path):
    """A place for jobs."""
    place = Workshop(tmp_path)
    place.set_up(SHAPE)
    return place


def pair(workshop, name, **settings):
    """Two jobs, without a graph and with one, that are equal otherwise."""
    assert SHAPE.hidden_dropout > 0 and SHAPE.attention_dropout > 0
    settings = {"dtype": "bf16", "deterministic": True, **LENGTH, **settings}
    return [
        workshop.job(f"{name}_{graphs}", SHAPE, cuda_graphs=graphs, **settings) for graphs in (False, True)
    ]


def assert_graph_changes_nothing(folders, caplog):
    caplog.set_level(logging.INFO)
    for folder, recordings in zip(folders, (0, 1), strict=True):
        caplog.clear()
        train(TrainJob.load(folder))
        assert caplog.text.count(RECORDED) == recordings
    assert_same_run(folders)


def assert_same_run(folders):
    assert len(losses(folders[0])) > LENGTH["train_iters"]
    assert losses(folders[0]) == losses(folders[1])
    assert_same_tensors(*(checkpoint_tensors(folder / "model/weights") for folder in folders))


@pytest.mark.gpu
@pytest.mark.parametrize("name", SETTINGS)
def test_graph_has_the_bits_of_steps_without(workshop, name, caplog):
    assert_graph_changes_nothing(pair(workshop, name, **SETTINGS[name]), caplog)


@pytest.mark.gpu
def test_instruction_data_in_a_graph(workshop, caplog):
    megatron_cpu.write_sources(workshop.folder / "tokens")
    assert_graph_changes_nothing(pair(workshop, "instructions"), caplog)


@pytest.mark.multigpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_graph_of_two_ranks(workshop, precision):
    pairs = {
        name: pair(workshop, name, layout=layout, **SETTINGS[precision]) for name, layout in ON_TWO.items()
    }
    assert not any(why_no_graph(layout, seq_length=LENGTH["seq_length"]) for layout in ON_TWO.values())
    folders = [folder for two in pairs.values() for folder in two]
    ports = megatron_cpu.free_ports(len(folders))
    megatron_cpu.on_ranks(2, megatron_cpu.train_in_turn, folders, ports)
    for two in pairs.values():
        assert_same_run(two)
