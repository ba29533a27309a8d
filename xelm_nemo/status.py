"""Show how far a run is.

python -m xelm_nemo.status +experiment=NAME
python -m xelm_nemo.status output=DIR
"""

import sys

from xelm_nemo import command


def main() -> None:
    """Print the table of the run's models."""
    from xelm_nemo.config.compose import compose
    from xelm_nemo.stages.plan import show_help, wants_help
    from xelm_nemo.stages.status import show_status

    if wants_help(sys.argv[1:]):
        return show_help(str(__doc__))
    show_status(compose(sys.argv[1:]).folder)


if __name__ == "__main__":
    sys.exit(command.run(main))
