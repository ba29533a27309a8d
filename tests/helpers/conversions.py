"""Conversions in a process of their own, with their time and the most memory that they had."""

import functools

from tests.helpers.memory import measure_program

PROGRAM = """
from xelm_nemo.artifacts import Recipe, verify
from xelm_nemo.checkpoint import distributed_files
from xelm_nemo.checkpoint.hf import export_hf, import_hf
from xelm_nemo.checkpoint.metaseq import import_metaseq
from xelm_nemo.checkpoint.metaseq_export import export_metaseq
from xelm_nemo.checkpoint.nemo import import_nemo

def export_nemo():
    output.mkdir()
    write_checkpoint(source, output, tokenizer=None)

source, output = map(Path, sys.argv[2:])
recipe = Recipe("model", {})
action = {
    "nothing": lambda: None,
    "nothing_nemo": lambda: None,
    "import_hf": lambda: import_hf(source, output, recipe),
    "import_metaseq": lambda: import_metaseq(source, output, recipe, tokenizer="words"),
    "import_nemo": lambda: import_nemo(source, output, recipe, tokenizer="words"),
    "verify": lambda: verify(source),
    "export_hf": lambda: export_hf(source, output, tokenizer=None),
    "export_metaseq": lambda: export_metaseq(source, output),
    "export_nemo": export_nemo,
}[sys.argv[1]]
if sys.argv[1] in ("nothing_nemo", "export_nemo"):
    from xelm_nemo.nemo.context import write_checkpoint
"""


def measure(action, source, output):
    """Run one of the actions above."""
    return measure_program(PROGRAM, "action()", action, source, output)


def taken(action, source, output, *, above="nothing", kind="peak_bytes"):
    """The memory of one of the actions, beyond that of the libraries, which another brings."""
    return getattr(measure(action, source, output), kind) - getattr(_libraries(above), kind)


@functools.cache
def _libraries(action):
    return measure(action, "", "")
