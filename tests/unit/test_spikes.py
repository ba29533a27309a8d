"""A loss that jumps is told, once a jump; noise, learning and a new level are not."""

import json
import random

import pytest

from tests.helpers.megatron_cpu import Workshop
from xelm_nemo.expert.job import TrainJob
from xelm_nemo.expert.screen import Screen
from xelm_nemo.expert.spikes import WINDOW, Spikes
from xelm_nemo.model.config import ModelConfig

SHAPE = ModelConfig(
    num_layers=1, hidden_size=16, ffn_hidden_size=32, num_attention_heads=2, max_position_embeddings=32
)
LEVEL = [3.0, 3.1, 2.9, 3.0, 3.05, 2.95]


def told(losses):
    """Place -> height of the losses that stand out."""
    spikes = Spikes()
    heights = {place: spikes.height(loss) for place, loss in enumerate(losses)}
    return {place: height for place, height in heights.items() if height is not None}


def test_jump_is_told_with_its_height():
    assert told([*LEVEL, 5.0, *LEVEL]) == {6: pytest.approx(2.0)}


def test_loss_that_falls_or_moves_a_little_is_not_told():
    assert told([11.0 * 0.9**n for n in range(60)]) == {}
    assert told([*LEVEL, 3.4, 3.45, *LEVEL]) == {}


def test_noise_of_small_batches_is_not_told():
    generator = random.Random(0)
    assert told([4 + generator.gauss(0, 0.6) for _ in range(500)]) == {}


def test_new_level_is_told_until_it_is_the_usual_one():
    found = told([*LEVEL, *LEVEL, *[5.0] * WINDOW])
    assert min(found) == 12 and max(found) < 12 + WINDOW - 1


def test_first_losses_are_compared_with_nothing():
    assert told([3.0, 9.0, 3.0, 9.0]) == {}


def test_spike_is_a_warning_and_a_field_of_the_metrics(tmp_path, caplog):
    job = TrainJob.load(Workshop(tmp_path).job("expert0", SHAPE, train_iters=20))
    screen = Screen(job, resume_at=0, vocab_size=100)
    for iteration, loss in enumerate([*LEVEL, 5.0, 3.0], start=1):
        screen.show(iteration, {"loss": loss, "grad_norm": 1.5, "waited_seconds": 0.0})
        screen.show(iteration, {"valid_loss": loss + 9})  # which is not looked at
    lines = [json.loads(line) for line in (tmp_path / "expert0/metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines if "loss_spike" in line] == [7]
    assert all(line["loss_spike"] is True and "loss" in line for line in lines if "loss_spike" in line)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [
        "expert0: the loss 5.0000 at iteration 7 is 2.0000 above the median of those logged before; "
        "its gradient norm is 1.5"
    ]
