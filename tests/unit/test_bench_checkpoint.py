"""The benchmark of checkpoints measures both ways to save, and leaves nothing behind."""

import json
import subprocess
import sys

import pytest

from xelm_nemo.bench.checkpoint import run
from xelm_nemo.errors import ConfigError

TINY = ["model=tiny", "vocab_size=300", "seq_length=32", "num_micro_batches=1", "steps=1"]


@pytest.mark.slow
def test_both_save_the_same_bytes(tmp_path):
    run([*TINY, f"output={tmp_path}", f"json={tmp_path / 'rows.jsonl'}"])
    megatron, ours = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    assert (megatron["provider"], ours["provider"]) == ("megatron", "ours")
    assert 0 < megatron["gb"] <= ours["gb"] < megatron["gb"] + 0.01  # ours has a manifest
    for row in (megatron, ours):
        assert row["whole"] > 0 and row["floor"] > 0 and row["step"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.slow
def test_data_parallel_ranks_save_the_same_bytes_as_megatron(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = [*TINY, "layouts=dp2", f"output={tmp_path}", f"json={tmp_path / 'rows.jsonl'}"]
    command = [*torchrun, "-m", "xelm_nemo.bench", "checkpoint", *words]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    megatron, ours = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    assert (ours["layout"], ours["gpus"]) == ("dp2", 2)
    assert ours["gb"] == pytest.approx(megatron["gb"], abs=0.01)


@pytest.mark.parametrize(
    "words, said",
    [
        ([], "output is not set"),
        (["rows=3"], "means nothing here"),
        (["output=x", "providers=theirs"], "use megatron,ours"),
    ],
)
def test_words_that_mean_nothing_are_refused(words, said):
    with pytest.raises(ConfigError, match=said):
        run([*TINY, *words])
