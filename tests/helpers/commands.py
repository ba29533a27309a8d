"""Run the project's commands as a user does, in a process of their own."""

import contextlib
import subprocess
import sys
from pathlib import Path

from xelm_nemo import command
from xelm_nemo.stages import pipeline

ROOT = Path(__file__).resolve().parents[2]

# The whole pipeline at a size for tests: two experts and a dense baseline, four iterations each;
# every size divides by two, so that any layout of two ranks fits.
SMALL = [
    *("+experiment=udhr", "model=tiny", "tokenizer.vocab_size=2048"),
    *("clustering.num_clusters=2", "clustering.num_starts=1"),
    *(
        "model.num_layers=2",
        "model.hidden_size=16",
        "model.ffn_hidden_size=32",
        "model.num_attention_heads=2",
    ),
    *("model.max_position_embeddings=32", "model.hidden_dropout=0.1", "training.seq_length=32"),
    *("training.train_iters=4", "training.global_batch_size=8", "training.micro_batch_size=2"),
    *("training.save_interval=2", "training.log_interval=1", "training.eval_interval=2"),
    *("training.eval_sequences=4", "seed_model.train_iters=4", "dense.train_iters=4"),
    *("evaluation.max_docs=6", "evaluation.bootstrap_samples=20"),
]


def start(verb, *arguments, **kwargs):
    """Start `python -m xelm_nemo.<verb>`; standard error is text to read."""
    command = [sys.executable, "-m", f"xelm_nemo.{verb}", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs
    )


@contextlib.contextmanager
def started(verb, *arguments):
    """`start`, for a block at whose end the process has ended, whatever became of the test."""
    process = start(verb, *arguments)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def run(verb, *arguments):
    """Run `python -m xelm_nemo.<verb>` to its end: exit code, standard output, standard error."""
    process = start(verb, *arguments)
    output, error = process.communicate(timeout=500)
    return process.returncode, output, error


def run_well(verb, *arguments):
    """Run a command that has to succeed; its standard output."""
    code, output, error = run(verb, *arguments)
    assert code == 0, error
    return output


@contextlib.contextmanager
def run_beside(verb, *arguments):
    """`run_well` while the block runs, and to its end."""
    with started(verb, *arguments) as process:
        yield
        _, error = process.communicate(timeout=500)
    assert process.returncode == 0, error


def refuse(capsys, *arguments, verb="train"):
    """Run a verb, which has to end with a user's error, in this process; its one line."""
    code = command.run(lambda: pipeline.main(verb, list(map(str, arguments))))
    error = capsys.readouterr().err.splitlines()
    assert code == 2, error
    lines = [line for line in error if line.startswith("error: ")]
    assert len(lines) == 1
    assert error[-1] == lines[0]  # and it goes on nowhere
    return lines[0]
