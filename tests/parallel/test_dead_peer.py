"""One of two ranks is stopped or killed: the other says where it waits, and the run ends with one line."""

import signal
import threading
import time

import psutil
import pytest
import torch

from tests.helpers.megatron_cpu import Workshop, losses
from tests.parallel.test_layouts import DROPOUT
from xelm_nemo.errors import LaunchError
from xelm_nemo.launch.job import LOG, Job
from xelm_nemo.launch.local import run_jobs
from xelm_nemo.model.config import ParallelConfig

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="its ranks are on a CPU"),
]
TWO = ParallelConfig(tensor_model_parallel_size=2)


def send_to_the_second_rank(number, folder):
    """Wait for the first step, then send a signal to the rank that was started last."""
    while not losses(folder):
        time.sleep(0.05)
    ranks = [child for child in psutil.Process().children() if "xelm_nemo.expert" in child.cmdline()]
    max(ranks, key=psutil.Process.create_time).send_signal(number)


@pytest.mark.parametrize(
    "number, said",
    [
        (
            signal.SIGSTOP,
            r"no step has finished in 6 s \(launch\.step_timeout\) after iteration \d+: a rank",
        ),
        (signal.SIGKILL, "was killed by SIGKILL"),
    ],
)
def test_other_rank_says_where_it_waits(tmp_path, number, said):
    workshop = Workshop(tmp_path)
    workshop.set_up(DROPOUT)
    lengths = {"train_iters": 100_000, "save_interval": 100_000, "eval_interval": 100_000}
    folder = workshop.job("expert0", DROPOUT, layout=TWO, step_timeout=6.0, **lengths)
    threading.Thread(target=send_to_the_second_rank, args=(number, folder), daemon=True).start()
    began = time.monotonic()
    with pytest.raises(LaunchError, match=said):
        run_jobs([Job("expert0", "xelm_nemo.expert", folder, 2)], max_parallel=1, gpus=0)
    assert time.monotonic() - began < 90
    log = (folder / LOG).read_text()
    assert "most recent call first" in log and "loop.py" in log  # the stack of the rank that waited
