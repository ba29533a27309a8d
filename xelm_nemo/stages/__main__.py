"""A stage as a batch job: `python -m xelm_nemo.stages VERB CONFIG FOLDER [PART]`, CONFIG as a run saved it.

FOLDER gets the state. PART is `begin`, or such as `3/8` (from 0), where jobs share the files of the stage.
A verb after training trains nothing: it records the experts that there are, and refuses to go on without the
others.
"""

import sys
from pathlib import Path

_PATIENCE_SECONDS = 600.0  # for the command that submitted this, which may still hold the run folder


def main(verb: str, config: Path, folder: Path, part: str = "") -> None:
    """Run the verb from a saved configuration."""
    from xelm_nemo import lock, log
    from xelm_nemo.config.compose import from_yaml
    from xelm_nemo.launch import slurm
    from xelm_nemo.launch.state import attempt
    from xelm_nemo.stages.batch import begin_verb, make_verb, share_verb
    from xelm_nemo.stages.claim import claim
    from xelm_nemo.stages.run import Run

    log.set_up()
    run = Run(from_yaml(config))
    number, is_share, of = part.partition("/")
    with (
        # Those that share the files write into one folder, each other files.
        lock.hold(folder if is_share else run.folder, patience_seconds=_PATIENCE_SECONDS),
        attempt(folder, lambda: slurm.why_stopped(None)),
    ):
        if is_share:
            return share_verb(run, verb, int(number), int(of))
        claim(run)
        (begin_verb if part else make_verb)(run, verb)


if __name__ == "__main__":
    from xelm_nemo import command

    sys.exit(command.run(lambda: main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])))
