"""Torch's profiler traces the iterations that are asked for, and changes nothing."""

import gzip
import json

import pytest

from tests.helpers.megatron_cpu import Workshop
from tests.helpers.weights import assert_same_weights
from xelm_nemo.config.compose import compose
from xelm_nemo.config.schema import differing_keys
from xelm_nemo.errors import ConfigError
from xelm_nemo.expert import loop
from xelm_nemo.expert.job import JOB, TrainJob
from xelm_nemo.files import read_json, write_json
from xelm_nemo.model.config import ModelConfig
from xelm_nemo.stages.jobs import expert_job
from xelm_nemo.stages.run import Run

SHAPE = ModelConfig(
    num_layers=1, hidden_size=16, ffn_hidden_size=32, num_attention_heads=2, max_position_embeddings=32
)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    workshop = Workshop(tmp_path_factory.mktemp("traces"))
    workshop.set_up(SHAPE)
    return workshop


def names(path):
    """Name of a span -> how often a trace has it."""
    with gzip.open(path) as file:
        events = json.load(file)["traceEvents"]
    marked = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    return {name: marked.count(name) for name in marked}


def test_iterations_asked_for_are_traced_and_the_weights_are_the_same(workshop):
    settings = {"train_iters": 3, "eval_interval": 2, "save_interval": 3}
    plain = workshop.job("plain", SHAPE, **settings)
    traced = workshop.job("traced", SHAPE, profile_iters=[2, 3], **settings)
    for folder in (plain, traced):
        loop.train(TrainJob.load(folder))
    found = {path.name: names(path) for path in sorted((traced / "profile").iterdir())}
    assert list(found) == ["iter_0000002_rank0.json.gz", "iter_0000003_rank0.json.gz"]
    second, third = found.values()
    step = {"step": 1, "forward_backward": 1, "optimizer": 1, "validation": 1}
    assert second.items() >= step.items() and "checkpoint" not in second
    assert third.items() >= (step | {"checkpoint": 1}).items()
    assert not (plain / "profile").exists()
    assert_same_weights(traced / "model", plain / "model")


def test_job_of_an_earlier_version_has_no_trace(workshop):
    folder = workshop.job("earlier", SHAPE)
    values = read_json(folder / JOB)
    del values["profile_iters"]
    write_json(folder / JOB, values)
    assert not TrainJob.load(folder).profile_iters


def test_traces_make_no_other_run():
    plain, traced = compose(["+experiment=udhr"]), compose(["+experiment=udhr", "training.profile_iters=[2]"])
    assert differing_keys(plain, traced) == []
    assert expert_job(Run(traced), 0).profile_iters == [2]


def test_iteration_that_the_training_does_not_have_is_refused():
    with pytest.raises(ConfigError) as caught:
        compose(["training.train_iters=20", "training.profile_iters=[0,10,21]"])
    assert "training.profile_iters=[0, 10, 21] has [0, 21], which are no" in str(caught.value)
    assert "use some of 1 to 20" in str(caught.value)


def test_rounds_have_the_iterations_of_the_longest():
    words = ["rounds=hmr", "clustering=typology", "clustering.num_clusters=2", "clustering.languages=[en,ja]"]
    words += ["rounds.train_iters=[200,400]", "training.train_iters=100"]
    compose([*words, "training.profile_iters=[400]"])
    with pytest.raises(ConfigError, match=r"has \[401\], .* use some of 1 to 400"):
        compose([*words, "training.profile_iters=[401]"])
