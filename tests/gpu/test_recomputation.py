"""Activations that are made again in backward on a GPU: with the dropout that they had."""

import pytest

from tests.helpers.megatron_cpu import Workshop, checkpoint_tensors, losses
from tests.helpers.weights import assert_same_tensors
from xelm_nemo.expert.job import TrainJob
from xelm_nemo.expert.loop import train
from xelm_nemo.model.config import FP8Config, ModelConfig, ParallelConfig

pytestmark = pytest.mark.gpu
SHAPE = ModelConfig(
    num_layers=3, hidden_size=256, ffn_hidden_size=1024, num_attention_heads=4, max_position_embeddings=128
)
FP8 = {"fp8": FP8Config(recipe="delayed")}


@pytest.mark.parametrize("granularity", ["selective", "full"])
@pytest.mark.parametrize("precision", [{}, FP8], ids=["bf16", "fp8"])
def test_activations_made_again_change_no_bit(tmp_path, precision, granularity):
    assert SHAPE.hidden_dropout > 0 and SHAPE.attention_dropout > 0
    workshop = Workshop(tmp_path)
    workshop.set_up(SHAPE)
    settings = {"dtype": "bf16", "deterministic": True, "seq_length": 128, "train_iters": 4, **precision}
    layouts = {"kept": ParallelConfig(), "again": ParallelConfig(recompute_granularity=granularity)}
    folders = [workshop.job(name, SHAPE, layout=layout, **settings) for name, layout in layouts.items()]
    for folder in folders:
        train(TrainJob.load(folder))
    assert losses(folders[0]) == losses(folders[1])
    assert_same_tensors(*(checkpoint_tensors(folder / "model/weights") for folder in folders))
