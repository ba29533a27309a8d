"""The worker that trains one model: `python -m xelm_nemo.expert FOLDER`, on every rank of it."""

import contextlib
import os
import sys
from pathlib import Path


def main(folder: Path) -> None:
    """Train the job described in the folder, which only one worker at a time may write to."""
    from xelm_nemo import lock, log
    from xelm_nemo.launch.local import die_with_launcher

    rank = int(os.environ.get("RANK", 0))
    die_with_launcher()
    log.set_up(rank=rank)
    from xelm_nemo.expert.job import TrainJob
    from xelm_nemo.expert.loop import train

    with lock.hold(folder) if rank == 0 else contextlib.nullcontext():
        train(TrainJob.load(folder))


if __name__ == "__main__":
    from xelm_nemo import command

    sys.exit(command.run(lambda: main(Path(sys.argv[1]))))
