"""Write the shipped corpus, or one made from raw files (corpus.raw=DIR), into the run folder.

python -m xelm_nemo.prepare +experiment=<name> key=value ...
"""

import sys

from xelm_nemo import command


def main() -> None:
    """Run the stage and those that it needs."""
    from xelm_nemo.stages import pipeline

    pipeline.main("prepare", sys.argv[1:])


if __name__ == "__main__":
    sys.exit(command.run(main))
