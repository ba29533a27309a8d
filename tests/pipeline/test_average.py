"""`export format=averaged`: a set of experts becomes one model."""

import json

import pytest
import torch

from tests.helpers.megatron_cpu import write_seed_model
from tests.helpers.weights import read_weights
from xelm_nemo import command
from xelm_nemo.config.compose import compose
from xelm_nemo.config.schema import ExportConfig
from xelm_nemo.model.config import ModelConfig
from xelm_nemo.stages.export import export_source

SHAPE = ModelConfig(
    num_layers=1, hidden_size=16, ffn_hidden_size=32, num_attention_heads=2, max_position_embeddings=16
)
DOCUMENTS = [{"sw": 30, "en": 1}, {"en": 5}, {"sw": 10}]  # of each cluster


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    """A run folder's set, with the report of the clusters that its experts were trained on."""
    run = tmp_path_factory.mktemp("run")
    rows = []
    for k in range(3):
        write_seed_model(run / f"experts/round0/expert{k}/model", SHAPE, seed=k + 1)
        rows.append({"name": f"expert{k}", "model": f"expert{k}/model", "cluster": k})
    (run / "experts/round0/set.json").write_text(json.dumps({"experts": rows}))
    (run / "clusters").mkdir()
    report = {"clusters": [{"cluster": k, "languages": mix} for k, mix in enumerate(DOCUMENTS)]}
    (run / "clusters/report.json").write_text(json.dumps(report))
    return run / "experts/round0"


def export(*words):
    return command.run(lambda: export_source(compose(list(map(str, words)), ExportConfig, "export")))


@pytest.mark.parametrize(
    "words, weights",
    [
        ([], [1, 1, 1]),
        (["average=equal"], [1, 1, 1]),
        (["average=sw"], [30, 0, 10]),
        (["average=sw", "average_clusters=1"], [1, 0, 0]),
        (["average=sw", "average_clusters=2"], [30, 0, 10]),
        (["average='expert0:2,expert1:0.5'"], [2, 0.5, 0]),
    ],
)
def test_weights_are_those_that_are_asked_for(experts, tmp_path, words, weights):
    assert export(f"source={experts}", "format=averaged", f"output={tmp_path / 'one'}", *words) == 0
    models = [read_weights(experts / f"expert{k}/model") for k in range(3)]
    for name, found in read_weights(tmp_path / "one").items():
        whole = sum(w * model[name].double() for w, model in zip(weights, models, strict=True))
        torch.testing.assert_close(found.double(), whole / sum(weights), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "words, said",
    [
        (["format=averaged", "average=fr"], "average='fr' is the language of no training document"),
        (["format=averaged", "average='expert9:1'"], "must have a weight for each of"),
        (["format=averaged", "average='expert0:much'"], "is no list of weights"),
        (["format=averaged", "average=sw", "average_clusters=0"], "average_clusters=0 leaves no expert"),
        (["format=averaged", "average_clusters=2"], "average_clusters=2 is for the average of a language"),
        (
            ["format=averaged", "average='expert0:1'", "average_clusters=2"],
            "average_clusters=2 is for the average of a language",
        ),
        (["format=hf", "average_clusters=2"], "average_clusters=2 is for format=averaged"),
        (["format=hf", "average=sw"], "average='sw' is for format=averaged"),
        (["format=averaged", "source=/usr"], "source='/usr' is no set of experts"),
    ],
)
def test_what_cannot_be_averaged_is_said_in_a_line(experts, tmp_path, capsys, words, said):
    assert export(f"source={experts}", f"output={tmp_path / 'one'}", *words) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "one").exists()
