"""Make the seed model that experts are branched from.

python -m xelm_nemo.branch +experiment=<name> key=value ...
python -m xelm_nemo.branch seed_model.source=hf seed_model.path=DIR output=RUN

The second form only converts: from hf, metaseq or nemo to the model folder RUN/seed_model/model, without an
experiment or a corpus. tokenizer.path=DIR gives the model a tokenizer; checkpoints of metaseq have none.
"""

import sys

from xelm_nemo import command


def main() -> None:
    """Run the stage and those that it needs."""
    from xelm_nemo.stages import pipeline

    pipeline.main("branch", sys.argv[1:])


if __name__ == "__main__":
    sys.exit(command.run(main))
