"""The benchmark of whole steps measures at the layouts it is asked for."""

import gc
import json
import subprocess
import sys
import weakref

import pytest

from xelm_nemo.bench.train_step import run
from xelm_nemo.errors import ConfigError
from xelm_nemo.model.gpt import DecoderModel

TINY = ["model=tiny", "providers=ours", "vocab_size=300", "seq_length=32", "num_micro_batches=2", "steps=2"]


@pytest.mark.slow
def test_two_ranks_measure_one_layout_after_another(tmp_path):
    file = tmp_path / "rows.jsonl"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = [*TINY, "layouts=dp2,tp2_sp,pp2", f"json={file}"]
    done = subprocess.run(
        [*torchrun, "-m", "xelm_nemo.bench", "train_step", *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["layout"] for row in rows] == ["dp2", "tp2_sp", "pp2"]
    for row in rows:
        assert row["tokens_per_s_per_gpu"] > 0 and row["step_ms"] > 0
        assert row["losses"][1] < row["losses"][0]  # the same batch again


@pytest.mark.slow
def test_hugging_faces_step_learns_from_the_same_loss_as_ours(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")  # compiled, it computes the same, after a minute
    file = tmp_path / "rows.jsonl"
    words = [*TINY, "providers=hugging_face,ours", f"json={file}"]
    subprocess.run([sys.executable, "-m", "xelm_nemo.bench", "train_step", *words], check=True)
    theirs, ours = [json.loads(line)["losses"] for line in file.read_text().splitlines()]
    assert theirs[1] < theirs[0]
    assert theirs == pytest.approx(ours, rel=0.02)  # other random weights, of the same size


def test_memory_of_a_sparse_model_is_free_for_the_next(capsys):
    shortlived = {1}
    dead = weakref.proxy(shortlived)  # others keep such a thing too, and it does not bear being asked
    del shortlived
    run([*TINY, "num_moe_experts=4", "moe_capacities=1.0"])
    said = capsys.readouterr().out
    assert said.count('"step_ms"') == 3 and '"form": "sparse"' in said
    assert not [found for found in gc.get_objects() if issubclass(type(found), DecoderModel)]
    assert type(dead) is weakref.ProxyType


@pytest.mark.slow
def test_a_sparse_model_is_measured_beside_dense_ones(tmp_path):
    file = tmp_path / "rows.jsonl"
    words = [*TINY, "num_moe_experts=4", "providers=ours,ours_sequential", f"json={file}"]
    subprocess.run([sys.executable, "-m", "xelm_nemo.bench", "train_step", *words], check=True)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    forms = [(row["form"], row["provider"]) for row in rows]
    sparse = [("sparse", "ours"), ("sparse", "ours_sequential")]
    assert forms == [("dense", "ours"), ("dense_wider", "ours"), *sparse, *sparse]
    dense, wider, *others = rows
    assert [row["moe_expert_capacity_factor"] for row in others] == [1.0, 1.0, None, None]
    for row in rows:
        assert row["tokens_per_s_per_gpu"] > 0 and row["losses"][1] < row["losses"][0]
    for row in others:
        assert row["moe_products"] == "sequential" and row["parameters"] > wider["parameters"]
        gate_and_biases = row["active_parameters"] - wider["active_parameters"]
        assert (
            abs(gate_and_biases) < 0.01 * row["active_parameters"]
            and dense["parameters"] < wider["parameters"]
        )
        assert (row["moe_dropped"] > 0) == (row["moe_expert_capacity_factor"] is not None)


@pytest.mark.parametrize(
    "word, said",
    [
        ("layouts=tp3x", "write such as dp4, tp2_sp or tp2_pp2_sp"),
        ("layouts=tp2", "is for 2 ranks; start that many with torchrun"),
        (
            "providers=theirs",
            "has ['theirs']; use ['stock', 'stock_balanced', 'hugging_face', 'ours', 'ours_",
        ),
        ("num_moe_experts=1", "moe_router_topk=2 is more than upcycle.num_moe_experts=1"),
        ("num_moe_experts=4 precision=fp8_delayed", "does not go with FP8; use precision=bf16"),
        ("num_moe_experts=4 moe_capacities=some", "write numbers above 0 or null, such as 1.0,null"),
        ("steps=many", "steps takes a number"),
        ("speed=1", "means nothing here"),
    ],
)
def test_words_that_mean_nothing_are_refused(word, said):
    with pytest.raises(ConfigError) as caught:
        run([*TINY, *word.split()])
    assert said in str(caught.value)
