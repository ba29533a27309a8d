"""Whose sizes the models of a run have: those of the configuration, or of the seed model that is imported."""

import dataclasses
import json

import pytest

from xelm_nemo import artifacts
from xelm_nemo.artifacts import Recipe
from xelm_nemo.config.compose import compose
from xelm_nemo.model.config import ModelConfig
from xelm_nemo.stages.jobs import expert_job
from xelm_nemo.stages.run import Run

IMPORTED = ModelConfig(num_layers=5, max_position_embeddings=64, hidden_dropout=0.0, attention_dropout=0.0)


@pytest.fixture
def run(tmp_path):
    """A run from a model of the hub, which no folder here holds."""

    def with_settings(*settings):
        return Run(
            compose(["seed_model=hf", "seed_model.path=somebody/model", f"output={tmp_path}", *settings])
        )

    return with_settings


def import_into(folder):
    with artifacts.build(folder, Recipe("model", {})) as part:
        facts = {"shape": dataclasses.asdict(IMPORTED), "vocab_size": 9, "dtype": "fp32", "tokenizer": "none"}
        (part / "model.json").write_text(json.dumps(facts))


def test_before_the_import_they_are_those_of_the_configuration(run):
    assert run().sized == run().config


@pytest.mark.parametrize("settings", [[], ["seed_model.train_iters=3"]], ids=["as_it_is", "trained_here"])
def test_after_the_import_they_are_the_seed_models_and_dropout_the_configurations(run, settings):
    run = run("model.hidden_dropout=0.25", *settings)
    import_into(run.seed_init)
    expected = dataclasses.replace(IMPORTED, hidden_dropout=0.25, attention_dropout=0.1)
    assert run.sized.model == expected
    job = expert_job(run, 0)
    assert (job.shape, job.seq_length) == (expected, 64)


def test_random_seed_model_has_the_sizes_of_the_configuration(run):
    run = run("seed_model.source=random")
    import_into(run.seed_init)
    assert run.sized == run.config
