"""Measure one operation against its peers, in one process and in turn.

python -m xelm_nemo.bench CASE ... [rounds=5] [only=NAME,...] [json=FILE] [SIZE=VALUE,...]
torchrun --nproc-per-node N -m xelm_nemo.bench train_step layouts=dp2,tp2_sp,pp2 [model=xglm_1_7b] ...
python -m xelm_nemo.bench checkpoint output=DIR [model=xglm_1_7b] [precision=bf16] ...

Cases and their sizes:
  linear_cross_entropy                     tokens, hidden, vocab
  linear_cross_entropy_parts               chunk, hidden, vocab
  mixture, target_mixture, mixture_blocks  experts, tokens, vocab
  batch_router                             documents, experts, terms, entries, dims
  evaluate                                 experts, documents, tokens, shortest, model, corpus, tokenizer
  kmeans                                   documents, clusters, dim
  shards                                   corpus, tokenizer, vocab; on a CPU, as the next
  featurise                                corpus, analyzer (word, char_wb), verb (fit, transform)
  prefix_router                            tokens, documents, experts, analyzer, corpus, tokenizer
  assign                                   corpus, clusters, verb (chain: from texts, files: from JSON lines)
With several values for a size every combination is measured; the numbers' defaults are for a GPU. A corpus is
a .jsonl file, a folder of them, or udhr. One row a provider: a table on the screen, a JSON object in FILE.
"""

import sys

from xelm_nemo import command


def main() -> None:
    """Run the cases that the command line names."""
    from xelm_nemo.bench.registry import parse
    from xelm_nemo.bench.run import run

    if not sys.argv[1:] or {"-h", "--help"} & set(sys.argv[1:]):
        sys.stdout.write(str(__doc__))
    elif sys.argv[1] == "train_step":
        from xelm_nemo.bench.train_step import run as run_steps

        run_steps(sys.argv[2:])
    elif sys.argv[1] == "checkpoint":
        from xelm_nemo.bench.checkpoint import run as run_checkpoints

        run_checkpoints(sys.argv[2:])
    else:
        run(parse(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(command.run(main))
