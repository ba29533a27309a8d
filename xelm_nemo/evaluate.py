"""Measure experts, dense baseline and ensembles on held-out documents.

python -m xelm_nemo.evaluate +experiment=<name> key=value ...

torchrun --nproc-per-node=N -m xelm_nemo.evaluate ... spreads the models over N ranks, or over groups of
parallel.tensor_model_parallel_size ranks, once they are trained.
"""

import os
import sys

from xelm_nemo import command


def main() -> None:
    """Run the stage and those that it needs."""
    from xelm_nemo.stages import evaluate, pipeline

    if int(os.environ.get("RANK", 0)):
        return evaluate.assist(sys.argv[1:])
    pipeline.main("evaluate", sys.argv[1:])


if __name__ == "__main__":
    sys.exit(command.run(main))
