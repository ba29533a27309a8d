"""The benchmark of evaluation runs, and upstream's algorithm and ours find the same."""

import json

from xelm_nemo.bench import registry, run


def test_every_provider_is_timed_and_right(tmp_path):
    words = ["model=tiny", "experts=3", "documents=3", "tokens=60", "shortest=8", "vocab=2000", "rounds=1"]
    run.run(registry.parse(["evaluate", *words, f"json={tmp_path / 'rows.jsonl'}"]))
    upstream, ours, forward = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    assert (upstream["provider"], ours["provider"], forward["provider"]) == ("upstream", "ours", "forward")
    assert ours["errors"]["relative"] < 1e-6
    assert min(row["p50_ms"] for row in (upstream, ours, forward)) > 0
