"""The benchmarks of the mixtures run, and what they compare computes the same."""

import json

import pytest

from xelm_nemo.bench import registry, run


@pytest.mark.parametrize("case", ["mixture", "target_mixture"])
def test_every_provider_is_timed_and_right(case, tmp_path):
    words = [case, "experts=2", "tokens=4,5", "vocab=1000", "rounds=2", f"json={tmp_path / 'rows.jsonl'}"]
    run.run(registry.parse(words))
    found = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    rows = {(row["experts"], row["tokens"], row["vocab"], row["provider"]): row for row in found}
    assert {key[:3] for key in rows} == {(2, 4, 1000), (2, 5, 1000)}
    assert {"eager", "ours"} <= {key[-1] for key in rows}
    for row in rows.values():
        assert 0 < row["p20_ms"] <= row["p50_ms"] <= row["p80_ms"]
        assert row["errors"]["largest"] < 1e-4
    assert all(row["speed_up"] == 1.0 for key, row in rows.items() if key[-1] == "eager")


def test_passes_are_timed_at_every_block_size(tmp_path):
    words = ["mixture_blocks", "experts=2", "tokens=4", "vocab=1000", "rounds=1"]
    run.run(registry.parse([*words, f"json={tmp_path / 'rows.jsonl'}"]))
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert {"expert_rows_4096_8", "mixture_1024_4"} <= {row["provider"] for row in rows}
    assert all("p50_ms" in row for row in rows)
