"""Tokenise every document into its cluster's token shard.

python -m xelm_nemo.shard +experiment=<name> key=value ...
"""

import sys

from xelm_nemo import command


def main() -> None:
    """Run the stage and those that it needs."""
    from xelm_nemo.stages import pipeline

    pipeline.main("shard", sys.argv[1:])


if __name__ == "__main__":
    sys.exit(command.run(main))
