import dataclasses

import pytest

from xelm_nemo.checkpoint.facts import ModelFacts
from xelm_nemo.checkpoint.siblings import check_siblings
from xelm_nemo.errors import CheckpointError
from xelm_nemo.model.config import ModelConfig

FACTS = ModelFacts(shape=ModelConfig(), vocab_size=100, dtype="fp32", tokenizer="t")


def of_shape(**changes):
    return dataclasses.replace(FACTS, shape=dataclasses.replace(FACTS.shape, **changes))


def test_models_of_one_seed_belong_together_whatever_their_dropout_and_training():
    trained = dataclasses.replace(of_shape(hidden_dropout=0.3), iteration=7, dtype="bf16", name="expert1")
    check_siblings({"expert0": FACTS, "expert1": trained})


def test_everything_in_which_two_models_differ_is_named():
    other = dataclasses.replace(of_shape(num_layers=9), vocab_size=99)
    with pytest.raises(
        CheckpointError, match=r"a and c differ in vocab_size \(100, 99\), num_layers \(\d+, 9\)"
    ):
        check_siblings({"a": FACTS, "b": FACTS, "c": other})
