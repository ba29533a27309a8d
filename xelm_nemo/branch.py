"""Make the seed model that experts are branched from.

python -m xelm_nemo.branch +experiment=<name> key=value ...
"""

import sys

from xelm_nemo import command


def main() -> None:
    """Run the stage and those that it needs."""
    from xelm_nemo.stages import pipeline

    pipeline.main("branch", sys.argv[1:])


if __name__ == "__main__":
    sys.exit(command.run(main))
