"""Write trained models in the formats of other libraries.

python -m xelm_nemo.export source=DIR output=DIR

source     a model, or a folder of several (the last of runs/<name>/experts/round*), of which each becomes
           a folder
output     where they go
format     hf (a Hugging Face folder), metaseq (a folder with a consolidated.pt), nemo (a NeMo checkpoint, for
           which NeMo has to be installed), averaged (a set's experts as one model folder), upcycled (a set's
           experts as one sparse model folder, their feed-forward parts its moe_experts), or upstream (a
           tf-idf clusterer as the original programs' two pickles); hf if not given
average    of averaged: a language, whose documents weigh the experts, or weights such as expert0:2,expert3:1;
           all alike if not given
moe_layer_freq  of upcycled: the last of every so many layers is sparse; 2 if not given
dtype      fp32, bf16 or fp16, if not the model's own; not for nemo
tokenizer  the tokenizer's folder or hub id, if not that of the model's run or, outside of runs, the one
           that the model was trained with
"""

import sys

from xelm_nemo import command


def main() -> None:
    """Export what `source` holds into `output`."""
    from xelm_nemo import log
    from xelm_nemo.config.compose import compose
    from xelm_nemo.config.schema import ExportConfig
    from xelm_nemo.stages.export import export_source
    from xelm_nemo.stages.plan import show_help, wants_help

    log.set_up()
    if wants_help(sys.argv[1:]):
        return show_help(str(__doc__))
    export_source(compose(sys.argv[1:], ExportConfig, "export"))


if __name__ == "__main__":
    sys.exit(command.run(main))
