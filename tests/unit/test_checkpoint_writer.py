"""A save that fails says so; it neither hangs nor leaves something that looks whole."""

import queue
import subprocess
import sys

from xelm_nemo.checkpoint.writer import write_in_threads

SAVE = """
import sys
from pathlib import Path
import torch
from xelm_nemo import parallel
from xelm_nemo.artifacts import Recipe
from xelm_nemo.checkpoint import store, writer
from xelm_nemo.checkpoint.facts import ModelFacts
from xelm_nemo.errors import CheckpointError
from xelm_nemo.model.config import ModelConfig, ParallelConfig
from xelm_nemo.model.gpt import build_model

shape = ModelConfig(num_layers=1, hidden_size=16, ffn_hidden_size=16, num_attention_heads=2)
with parallel.model_parallel(alone=True):
    model = build_model(shape, ParallelConfig(), vocab_size=100, dtype=torch.float32)
    def no_space(*args, **kwargs):
        raise OSError(28, "No space left on device")
    sys.modules["megatron.core.dist_checkpointing.strategies.filesystem_async"]._write_item = no_space
    try:
        store.save_model(Path(sys.argv[1]), model, ModelFacts(shape, 100, "fp32", "t"), Recipe("model", {}))
    except CheckpointError as error:
        print(error)
"""


def test_full_disk_is_one_line_and_leaves_no_model(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", SAVE, str(tmp_path / "model")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert "cannot be written" in done.stdout and "No space left on device" in done.stdout, done.stderr
    assert not (tmp_path / "model").exists()


def test_bucket_that_fails_is_handed_on_as_its_exception(tmp_path):
    results = queue.Queue()
    missing = (tmp_path / "nowhere" / "file", "file", ([], []))
    write_in_threads([], False, 0, [(tmp_path / "file", "file", ([], [])), missing], results)
    assert isinstance(results.get_nowait(), FileNotFoundError)
