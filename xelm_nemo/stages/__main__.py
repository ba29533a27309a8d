"""A stage as a batch job: `python -m xelm_nemo.stages VERB CONFIG FOLDER`, CONFIG as a run saved it.

FOLDER gets the state. A verb after training trains nothing: it records the experts that there are, and
refuses to go on without the others.
"""

import sys
from pathlib import Path

_PATIENCE_SECONDS = 600.0  # for the command that submitted this, which may still hold the run folder


def main(verb: str, config: Path, folder: Path) -> None:
    """Run the verb from a saved configuration."""
    from xelm_nemo import lock, log
    from xelm_nemo.config.compose import from_yaml
    from xelm_nemo.launch import slurm
    from xelm_nemo.launch.state import attempt
    from xelm_nemo.stages.batch import make_verb
    from xelm_nemo.stages.claim import claim
    from xelm_nemo.stages.run import Run

    log.set_up()
    run = Run(from_yaml(config))
    with (
        lock.hold(run.folder, patience_seconds=_PATIENCE_SECONDS),
        attempt(folder, lambda: slurm.why_stopped(None)),
    ):
        claim(run)
        make_verb(run, verb)


if __name__ == "__main__":
    from xelm_nemo import command

    sys.exit(command.run(lambda: main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))))
