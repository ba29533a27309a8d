"""Show how a run fares.

python -m xelm_nemo.status +experiment=NAME
python -m xelm_nemo.status output=DIR

watch=true goes on until it is interrupted; json=true prints a list of objects instead of a table.
"""

import sys

from xelm_nemo import command

_SWITCHES = ("watch=true", "json=true")


def main() -> None:
    """Print the table of the run's models."""
    from xelm_nemo.config.compose import compose
    from xelm_nemo.stages.plan import show_help, wants_help
    from xelm_nemo.stages.status import show_status

    arguments = sys.argv[1:]
    if wants_help(arguments):
        return show_help(str(__doc__))
    folder = compose([word for word in arguments if word not in _SWITCHES]).folder
    show_status(folder, watch="watch=true" in arguments, as_json="json=true" in arguments)


if __name__ == "__main__":
    sys.exit(command.run(main))
