"""Train every expert of a run, after every earlier stage that is missing or out of date.

python -m xelm_nemo.train +experiment=<name> key=value ...
"""

import sys

from xelm_nemo import command


def main() -> None:
    """Run the stage and those that it needs."""
    from xelm_nemo.stages import pipeline

    pipeline.main("train", sys.argv[1:])


if __name__ == "__main__":
    sys.exit(command.run(main))
