"""The worker that trains one model: `python -m xelm_nemo.expert FOLDER`, on every rank of it."""

import faulthandler
import os
import signal
import sys
from pathlib import Path


def main(folder: Path) -> None:
    """Train the job described in the folder, which only one worker at a time may write to."""
    from xelm_nemo import log
    from xelm_nemo.launch import signals
    from xelm_nemo.launch.local import die_with_launcher

    faulthandler.enable()  # where it stood when a signal ended it
    faulthandler.register(signal.SIGQUIT)  # and where it stands, when asked
    rank = int(os.environ.get("RANK", 0))
    die_with_launcher()
    log.set_up(rank=rank)
    from xelm_nemo.expert.job import TrainJob

    job = TrainJob.load(folder)
    with signals.caught(job.stop_signals) as stop:
        from xelm_nemo.expert.worker import work

        work(job, rank, stop)


if __name__ == "__main__":
    from xelm_nemo import command

    sys.exit(command.run(lambda: main(Path(sys.argv[1]))))
