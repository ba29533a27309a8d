"""Show how far a run is.

python -m xelm_nemo.status +experiment=<name>
python -m xelm_nemo.status output=DIR
"""

import sys

from xelm_nemo import command


def main() -> None:
    """Print the table of the run's models."""
    from xelm_nemo.config.compose import compose
    from xelm_nemo.stages.status import show_status

    show_status(compose(sys.argv[1:]).folder)


if __name__ == "__main__":
    sys.exit(command.run(main))
