"""Simulate how long a run's experts take on a cluster, against a dense model of equal tokens.

python -m xelm_nemo.simulate +experiment=NAME rates=FILE gpus=16,64,256

rates    a JSON file: a GPU's tokens a second, and the cluster's queue, failures and preemptions
gpus     sizes of clusters
courses  simulated for each size, 100 if not given
seed     of the first course, 1 if not given
plot     a PNG file to draw into
json     json=true prints a list of objects instead of a table

Other key=value words are the run's. Nothing is read or written but these files.
"""

import sys

from xelm_nemo import command

_OWN = ("rates", "gpus", "courses", "seed", "plot", "json")


def main() -> None:
    """Print, and draw if asked to, what a simulation finds."""
    from xelm_nemo.config.compose import compose
    from xelm_nemo.simulation.request import Request, answer
    from xelm_nemo.stages.plan import show_help, wants_help

    words = sys.argv[1:]
    if wants_help(words):
        return show_help(str(__doc__))
    own = [word for word in words if word.partition("=")[0] in _OWN]
    answer(compose([word for word in words if word not in own]), Request.of(own))


if __name__ == "__main__":
    sys.exit(command.run(main))
