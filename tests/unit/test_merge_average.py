import dataclasses
import math

import pytest
import torch

from tests.helpers.megatron_cpu import write_seed_model
from tests.helpers.weights import read_weights
from xelm_nemo.checkpoint.facts import load_facts
from xelm_nemo.errors import CheckpointError, ConfigError
from xelm_nemo.merge.average import average_models, language_weights, normalised
from xelm_nemo.model.config import ModelConfig

SHAPE = ModelConfig(
    num_layers=2, hidden_size=16, ffn_hidden_size=32, num_attention_heads=2, max_position_embeddings=16
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Three models with different weights; the third is the first again."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(["a", "b", "c"]):
        write_seed_model(folder / name, SHAPE, seed=1 + seed % 2)
    return {name: folder / name for name in ("a", "b", "c")}


def test_the_average_is_the_weighted_sum_of_every_tensor(models, tmp_path):
    average_models(models, {"a": 1, "b": 2, "c": 1}, tmp_path / "average")
    a, b, found = (read_weights(folder) for folder in (models["a"], models["b"], tmp_path / "average"))
    assert found.keys() == a.keys()
    assert any(not torch.equal(a[name], b[name]) for name in a)
    for name in a:
        torch.testing.assert_close(found[name], (0.5 * a[name].double() + 0.5 * b[name].double()).float())


def test_the_average_of_equal_models_is_that_model_bit_for_bit(models, tmp_path):
    average_models({n: models[n] for n in "ac"}, {"a": 1 / 3, "c": 2 / 3}, tmp_path / "average")
    expected, found = read_weights(models["a"]), read_weights(tmp_path / "average")
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_model_without_weight_is_not_read(models, tmp_path):
    average_models(models | {"gone": tmp_path / "gone"}, {"a": 0, "b": 5, "c": 0, "gone": 0}, tmp_path / "b")
    expected, found = read_weights(models["b"]), read_weights(tmp_path / "b")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert load_facts(tmp_path / "b").name == "average"


def test_models_of_different_shapes_are_refused(models, tmp_path):
    other = tmp_path / "other"
    write_seed_model(other, dataclasses.replace(SHAPE, num_layers=1), seed=1)
    with pytest.raises(CheckpointError, match=r"a and other differ in num_layers \(2, 1\)"):
        average_models({"a": models["a"], "other": other}, {"a": 1, "other": 1}, tmp_path / "average")
    assert not (tmp_path / "average").exists()


@pytest.mark.parametrize(
    "weights, said",
    [
        ({"a": 1}, r"a weight for each of \['a', 'b'\]"),
        ({"a": 1, "b": 1, "c": 1}, "and no other"),
        ({"a": 0, "b": 0}, "not all of them 0"),
        ({"a": -1, "b": 2}, "from 0 up"),
        ({"a": math.nan, "b": 2}, "from 0 up"),
    ],
)
def test_weights_that_cannot_work_are_refused(weights, said):
    with pytest.raises(ConfigError, match=said):
        normalised({"a": None, "b": None}, weights)


DOCUMENTS = [{"de": 30, "en": 1}, {"de": 10}, {"en": 99, "de": 20}]


@pytest.mark.parametrize(
    "clusters, expected", [(None, [0.5, 1 / 6, 1 / 3]), (2, [0.6, 0.0, 0.4]), (1, [1.0, 0.0, 0.0])]
)
def test_a_languages_weights_are_its_shares_of_documents(clusters, expected):
    assert language_weights(DOCUMENTS, "de", clusters=clusters) == pytest.approx(expected)


def test_a_language_without_documents_is_refused():
    with pytest.raises(ConfigError, match=r"average='fr' .* use one of \['de', 'en'\]"):
        language_weights(DOCUMENTS, "fr")
