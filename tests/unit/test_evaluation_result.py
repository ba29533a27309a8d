import dataclasses
import math

import pytest

from tests.helpers.evaluations import result
from xelm_nemo.errors import ArtifactError
from xelm_nemo.evaluation.result import Score, read_results, write_results
from xelm_nemo.files import read_json


def test_result_json_has_upstreams_keys(tmp_path):
    write_results(tmp_path / "result.json", [result()])
    value = read_json(tmp_path / "result.json")
    assert (value["dataset"], value["result_prior"]) == ("test", None)
    assert value["result_ppl"] == pytest.approx(20.0)


def test_result_json_holds_every_figure_of_the_report(tmp_path):
    write_results(tmp_path / "result.json", [result()])
    dense = next(m for m in read_json(tmp_path / "result.json")["models"] if m["name"] == "dense")
    assert dense["overall"]["perplexity"] == pytest.approx(25.0)
    assert dense["overall"]["bits_per_byte"] == pytest.approx(math.log2(25.0) / 4)
    assert dense["by_language"]["en"]["perplexity"] == pytest.approx(26.5)


def test_a_result_comes_back_from_its_file_unchanged(tmp_path):
    write_results(tmp_path / "result.json", [result()])
    assert read_results(tmp_path / "result.json") == [result()]


def test_every_subset_has_its_own_entry(tmp_path):
    subsets = [dataclasses.replace(result(), dataset="a"), dataclasses.replace(result(10.0), dataset="b")]
    write_results(tmp_path / "result.json", subsets)
    value = read_json(tmp_path / "result.json")
    assert (value["dataset"], [each["dataset"] for each in value["subsets"]]) == ("a", ["b"])
    assert value["subsets"][0]["result_ppl"] == pytest.approx(10.0)
    assert read_results(tmp_path / "result.json") == subsets


def test_a_missing_result_is_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"result\.json is missing"):
        read_results(tmp_path / "result.json")


def test_a_loss_past_all_bounds_is_an_infinite_perplexity():
    assert Score(nats=1e6, num_tokens=10, num_bytes=10).perplexity == math.inf
