"""NeMo's trainer beside ours in one run of the benchmark."""

import json

from tests.helpers.nemo import needs_nemo
from xelm_nemo.bench.train_step import run

pytestmark = needs_nemo


def test_both_learn_at_first_what_the_vocabulary_is(tmp_path):
    rows = tmp_path / "rows.jsonl"
    words = ["model=tiny", "vocab_size=300", "seq_length=32", "num_micro_batches=2", "steps=1"]
    run([*words, "providers=nemo,ours", f"json={rows}"])
    nemo, ours = map(json.loads, rows.read_text().splitlines())
    assert (nemo["provider"], ours["provider"]) == ("nemo", "ours")
    for row in (nemo, ours):
        assert row["tokens_per_s_per_gpu"] > 0
        assert all(abs(loss - 5.7) < 0.5 for loss in row["losses"])  # log 300
