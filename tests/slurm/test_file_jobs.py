"""`cluster` and `shard` as jobs of a real SLURM that share the corpus files."""

import json
import re

import pytest

from tests.helpers.commands import SMALL, run_beside, run_well
from tests.helpers.slurm_cluster import wait_for
from xelm_nemo.corpus.udhr import documents

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]

SLURM = [
    *("launch=slurm", "launch.slurm.gpus_per_rank=0", "launch.slurm.cpus_per_rank=1"),
    *("launch.slurm.ranks_per_node=1", "launch.slurm.mem_gb=3", "launch.slurm.time=30"),
]


def made(folder):
    """What is in the clusters and tokens of a run, but for when it was made."""
    paths = [path for part in ("clusters", "tokens") for path in (folder / part).rglob("*")]
    files = [path for path in paths if path.is_file() and path.name != "manifest.json"]
    return {path.relative_to(folder): path.read_bytes() for path in files}


def test_three_jobs_make_the_bytes_of_a_local_run(cluster, tmp_path):
    rows = [json.dumps({"text": row["text"], "lang": row["lang"]}) + "\n" for row in documents()]
    for number in range(8):
        split = "train" if number < 7 else "valid"
        path = tmp_path / "corpus" / split / "0" / f"{number}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(rows[number::8]))
    settings = [*SMALL, f"corpus.path={tmp_path / 'corpus'}"]
    with run_beside("shard", *settings, f"output={tmp_path / 'local'}"):
        run_well("shard", *settings, *SLURM, "launch.slurm.file_jobs=3", f"output={tmp_path / 'run'}")
    assert made(tmp_path / "run") == made(tmp_path / "local") != {}

    def jobs():
        return cluster.call("squeue", "-h", "-r", "-t", "all", "-o", "%j %T").splitlines()

    wait_for(lambda: all(line.endswith("COMPLETED") for line in jobs()), 30, "a job does not end")
    for verb in ("cluster", "shard"):
        assert jobs().count(f"run-{verb}-files COMPLETED") == 3
        logs = [(tmp_path / f"run/launch/{verb}-{k}-of-3/train.log").read_text() for k in range(3)]
        assert all(re.search(r"SLURM job \d+_\d, restart 0, on n\d", log) for log in logs)
