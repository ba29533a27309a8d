"""Continue prompts with the mixture of an expert set.

python -m xelm_nemo.generate SOURCE "PROMPT" ["PROMPT" ...] [options]
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from xelm_nemo import command

if TYPE_CHECKING:
    from xelm_nemo.generation.text import Generated


def main() -> None:
    """Print every prompt with its continuation; a single one as it grows."""
    arguments = _parser().parse_args()
    from xelm_nemo import log
    from xelm_nemo.generation.text import Sampling, Writer
    from xelm_nemo.stages.generate import find_set

    log.set_up()
    names = ("max_new_tokens", "temperature", "top_k", "top_p", "seed", "experts_per_token")
    sampling = Sampling(**{name: getattr(arguments, name) for name in names})
    writer = Writer(find_set(arguments.source), sampling)
    streams = len(arguments.prompts) == 1
    for generated in writer.write(arguments.prompts, on_screen=streams):
        if not streams:
            sys.stdout.write(generated.text + "\n")
        if arguments.weights:
            sys.stdout.write(_weights(generated))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m xelm_nemo.generate", description="Continue prompts with the mixture of an expert set."
    )
    parser.add_argument("source", type=Path, help="a run whose experts are exported, or an exported set")
    parser.add_argument("prompts", nargs="+", metavar="prompt", help="texts to continue, in one batch")
    add = parser.add_argument
    add("--max-new-tokens", type=int, default=100)
    add("--temperature", type=float, default=0.0, help="0, the default, takes the likeliest token")
    add("--top-k", type=int, default=0, help="draw from so many of the likeliest tokens; 0: from all")
    add("--top-p", type=float, default=1.0, help="draw from the likeliest tokens with this much probability")
    add("--seed", type=int, default=1234)
    add("--experts-per-token", type=int, default=None, help="keep so many experts; default: the set's")
    add("--weights", action="store_true", help="print the experts' weights at every new token")
    return parser


def _weights(generated: "Generated") -> str:
    """A line a token: each expert's weight, and the token."""
    rows = zip(generated.log_w_TE.exp().tolist(), generated.tokens, strict=True)
    return "".join(f"{' '.join(f'{weight:.3f}' for weight in row)}  {token}\n" for row, token in rows)


if __name__ == "__main__":
    sys.exit(command.run(main))
