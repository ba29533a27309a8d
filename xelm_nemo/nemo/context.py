"""NeMo's checkpoint folders out: our weights, and beside them the context that NeMo builds a model from."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from nemo import lightning as nl
from nemo.collections.common.tokenizers import AutoTokenizer
from nemo.lightning.io.pl import TrainerContext

from xelm_nemo.checkpoint.facts import ModelFacts, load_facts
from xelm_nemo.checkpoint.model_folder import copy_weights
from xelm_nemo.checkpoint.nemo_context import CONTEXT
from xelm_nemo.corpus.tokenizer import load_tokenizer
from xelm_nemo.nemo.models import ARCHITECTURES, config_settings


def write_checkpoint(model_folder: Path, output: Path, *, tokenizer: Path | str | None) -> None:
    """Fill a folder with the NeMo checkpoint of a finished model, whose `weights/` are copied as they are.

    Args:
        model_folder: the model, as a training run or an import wrote it.
        output: an existing folder.
        tokenizer: the folder or hub id of its tokenizer; None: the checkpoint gets none.
    """
    copy_weights(model_folder, output)
    write_context(output, load_facts(model_folder), tokenizer=tokenizer)


def write_context(checkpoint: Path, facts: ModelFacts, *, tokenizer: Path | str | None) -> None:
    """Write `context/` as NeMo's own trainer does: the model's configuration, its tokenizer, a trainer."""
    config_class, model_class = ARCHITECTURES[facts.shape.architecture]
    with tempfile.TemporaryDirectory() as scratch:
        words = _copy(tokenizer, Path(scratch) / "tokenizer") if tokenizer else None
        model = model_class(config_class(**_settings(facts)), tokenizer=words)
        trainer = nl.Trainer(devices=1, accelerator="cpu", strategy=nl.MegatronStrategy())
        TrainerContext(model, trainer, extra={}).io_dump(checkpoint / CONTEXT, yaml_attrs=["model"])


def _settings(facts: ModelFacts) -> dict[str, Any]:
    is_bf16 = facts.dtype == "bf16"
    dtype = torch.bfloat16 if is_bf16 else torch.float32
    settings = {"vocab_size": facts.vocab_size, "bf16": is_bf16, "params_dtype": dtype}
    return config_settings(facts.shape) | settings


def _copy(tokenizer: Path | str, folder: Path) -> AutoTokenizer:
    """The tokenizer from a folder of its own: NeMo copies all that lies beside it, weights included."""
    load_tokenizer(tokenizer).save_pretrained(folder)
    return AutoTokenizer(str(folder))
