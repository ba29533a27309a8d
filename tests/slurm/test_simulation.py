"""Jobs of a real SLURM that take turns, beside the same jobs simulated."""

import time

import pytest

from tests.helpers.slurm_cluster import wait_for
from xelm_nemo.simulation.cluster import Jobs, simulate
from xelm_nemo.simulation.rates import Rates

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]

WORK_SECONDS = 8
SLACK_SECONDS = 3.0  # of a turn: SLURM looks for what to start about once a second


def test_turns_take_as_long_as_simulated(cluster):
    jobs = Jobs(number=12, gpus=1, work=float(WORK_SECONDS))
    expected = simulate(jobs, Rates(tokens_per_second=1.0), gpus=4, seed=0).makespan
    began = time.monotonic()
    words = ["--array=0-11%4", "--mem=50", "--output=/dev/null", f"--wrap=sleep {WORK_SECONDS}"]
    job = cluster.call("sbatch", "--parsable", *words).strip()
    wait_for(lambda: not cluster.call("squeue", "-h", "-j", job, check=False).strip(), 200, "jobs do not end")
    took = time.monotonic() - began
    assert expected == 3 * WORK_SECONDS
    assert expected <= took <= expected + 3 * SLACK_SECONDS
