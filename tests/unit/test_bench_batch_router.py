"""The benchmark of routing sparse rows runs, and what it compares computes the same."""

import json

from xelm_nemo.bench import registry, run


def test_every_provider_is_timed_and_right(tmp_path):
    words = ["documents=40", "experts=3", "terms=1000", "entries=20", "rounds=1"]
    run.run(registry.parse(["batch_router", *words, f"json={tmp_path / 'rows.jsonl'}"]))
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["provider"] for row in rows][:4] == ["eager", "upstream", "ours", "ours_float32"]
    for row in rows:
        assert row["p50_ms"] > 0
        assert row["errors"]["largest"] < 1e-3  # a table in float16 rounds by as much
