"""Cancel SLURM jobs of a run.

python -m xelm_nemo.cancel +experiment=NAME [MODEL ...]
python -m xelm_nemo.cancel output=DIR [MODEL ...]

MODEL is expert0, expert1, ..., dense; without one, all.
"""

import sys

from xelm_nemo import command


def main() -> None:
    """Do it, or say how to call it."""
    from xelm_nemo.stages.plan import show_help, wants_help
    from xelm_nemo.stages.verbs import cancel

    if wants_help(sys.argv[1:]):
        return show_help(str(__doc__))
    cancel(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(command.run(main))
