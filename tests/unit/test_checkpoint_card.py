"""The model card says of a model what is known of it, and no more."""

import pytest

from xelm_nemo.checkpoint.card import model_card
from xelm_nemo.checkpoint.facts import ModelFacts
from xelm_nemo.model.config import ModelConfig

TRAINED = {"iteration": 2000, "consumed_tokens": 4096000, "parent": "run/seed_model/model"}


def card(extra, **facts):
    return model_card(ModelFacts(ModelConfig(), 300, "fp32", "words", **facts), extra)


@pytest.mark.parametrize(
    "facts, extra, said",
    [
        ({"parent": "/models/xglm"}, {}, "An XGLM language model, converted with its weights as they were."),
        ({}, {}, "An XGLM language model with random weights."),
        (TRAINED, {}, "An XGLM language model trained with xelm_nemo."),
        (TRAINED, {"cluster": 3}, "trained with X-ELM: one of several experts"),
    ],
    ids=["converted", "random", "trained", "expert"],
)
def test_card_says_where_the_weights_come_from(facts, extra, said):
    assert said in card(extra, **facts)


def test_only_a_model_that_was_trained_here_has_steps_and_the_tag():
    converted, trained = card({}, parent="/models/xglm"), card({}, **TRAINED)
    for part in ("x-elm", "| steps |", "| training tokens |"):
        assert part not in converted and part in trained
    assert "| steps | 2,000 |" in trained and "| training tokens | 4,096,000 |" in trained
    assert "| parent | models/xglm |" in converted
