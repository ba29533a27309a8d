"""A peer of the training step: NeMo's trainer, in a process of its own, for it takes a process for itself."""

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from xelm_nemo.bench.setting import Setting
from xelm_nemo.errors import ConfigError
from xelm_nemo.model.config import ParallelConfig

MODULE = "xelm_nemo.nemo.stock_trainer"
_SIZES = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads")
_WORLD = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}  # of this process, not of NeMo's
_DROPOUTS = ("hidden_dropout", "attention_dropout")


def nemo_steps(setting: Setting, steps: int) -> dict[str, Any]:
    """`seconds` and `losses` of NeMo's first steps, and `peak_gib`, None without a GPU.

    Raises:
        ConfigError: the layout has more than one rank.
        RuntimeError: NeMo failed; the last line that it said.
    """
    if setting.layout != ParallelConfig():
        raise ConfigError("providers=nemo trains on one GPU; leave it out, or start one process.")
    request = {
        "shape": {name: getattr(setting.shape, name) for name in _SIZES + _DROPOUTS},
        "fp8_recipe": setting.fp8.recipe,
        "steps": steps,
        **{
            name: getattr(setting, name)
            for name in ("vocab_size", "seq_length", "micro_batch_size", "num_micro_batches")
        },
    }
    with TemporaryDirectory() as folder:
        asked, answer = Path(folder) / "request.json", Path(folder) / "row.json"
        asked.write_text(json.dumps(request))
        done = subprocess.run(
            [sys.executable, "-m", MODULE, asked, answer],
            env={name: value for name, value in os.environ.items() if name not in _WORLD},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError((done.stderr.strip().splitlines() or ["NeMo said nothing"])[-1])
        row: dict[str, Any] = json.loads(answer.read_text())
        return row
