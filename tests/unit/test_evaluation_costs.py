"""What models and ensembles are said to take."""

import dataclasses

import pytest

from tests.helpers.evaluations import result
from xelm_nemo.checkpoint.facts import ModelFacts
from xelm_nemo.ensemble.rules import Ensemble
from xelm_nemo.evaluation.costs import cost_of, ensemble_cost
from xelm_nemo.evaluation.report import report_markdown
from xelm_nemo.evaluation.result import Cost, read_results, write_results
from xelm_nemo.model.config import ModelConfig, SparseConfig

DENSE = ModelConfig(num_layers=4, hidden_size=16, ffn_hidden_size=32, num_attention_heads=2)
SPARSE = SparseConfig(**dataclasses.asdict(DENSE), num_moe_experts=8)
EXPERTS = [Cost(100.0, 1000)] * 4


def facts(shape, dtype="fp32"):
    return ModelFacts(shape, 128, dtype, "none")


def test_a_sparse_model_computes_with_the_moe_experts_of_a_token_and_holds_all():
    dense, sparse = cost_of(facts(DENSE), 32), cost_of(facts(SPARSE), 32)
    ffn, gate = 2 * 16 * 32, 8 * 16
    assert sparse.flops_per_token - dense.flops_per_token == pytest.approx(2 * 2 * (ffn + gate))
    biases = 32 + 16
    assert sparse.weight_bytes - dense.weight_bytes == 4 * 2 * (7 * (ffn + biases) + gate)


def test_half_the_bytes_a_weight_are_half_the_memory_and_the_same_work():
    whole, half = cost_of(facts(DENSE), 32), cost_of(facts(DENSE, "bf16"), 32)
    assert (half.flops_per_token, 2 * half.weight_bytes) == (whole.flops_per_token, whole.weight_bytes)


@pytest.mark.parametrize(
    "rule, top_k, running",
    [
        ("clustering", None, 4),
        ("clustering", 1, 1),
        ("clustering", 9, 4),
        ("uniform", None, 4),
        ("top1_language", None, 1),
        ("bayes", 1, 4),  # what every expert says shapes the weights
    ],
)
def test_an_ensemble_runs_those_that_have_weight_and_holds_all(rule, top_k, running):
    assert ensemble_cost(Ensemble("one", rule, top_k), EXPERTS) == Cost(100.0 * running, 4000)


def test_the_overall_table_has_costs_where_they_are_known(tmp_path):
    known = dataclasses.replace(result(), costs={"dense": Cost(2.5e9, 3 * 2**20)})
    write_results(tmp_path / "result.json", [known])
    report = report_markdown(read_results(tmp_path / "result.json")[0])
    assert "| training tokens | GFLOP a token | weights, MiB |" in report
    assert "| 2.5 | 3.0 |" in next(line for line in report.splitlines() if line.startswith("| dense |"))
    assert "GFLOP" not in report_markdown(result())
