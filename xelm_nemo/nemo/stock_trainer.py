"""NeMo's own trainer on a GPT of a shape: the times of its steps, for the benchmark that measures ours.

python -m xelm_nemo.nemo.stock_trainer REQUEST.json ROW.json

As NeMo's recipes set it up: its GPTModel, its mock data, Megatron's distributed optimizer, FP8 weights where
products are in FP8.
"""

import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig
from nemo import lightning as nl
from nemo.collections import llm
from nemo.collections.llm.gpt.data.mock import MockDataModule

from xelm_nemo import device
from xelm_nemo.nemo import cpu

_END_OF_DOCUMENT = 2


class _Tokenizer:
    """All that NeMo's mock data asks of one."""

    bos_id, eos_id, eod, unk_id = 0, _END_OF_DOCUMENT, _END_OF_DOCUMENT, 3
    unique_identifiers: ClassVar[dict[str, str]] = {}

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size


class _Clock(Callback):
    """Seconds of every step and its loss."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.losses: list[float] = []

    def on_train_batch_start(self, *_: Any, **__: Any) -> None:
        torch.cuda.synchronize()
        self._start = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, model: Any, outputs: Any, *_: Any, **__: Any) -> None:
        torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self._start)
        self.losses.append(round(float(outputs["loss"]), 4))


def main(request: dict[str, Any]) -> dict[str, Any]:
    """Train for as many steps as the request says."""
    cpu.enter(threads=device.cores())
    clock, tokenizer = _Clock(), _Tokenizer(request["vocab_size"])
    with TemporaryDirectory() as folder:
        llm.train(
            model=llm.GPTModel(_shape(request), tokenizer=tokenizer),
            data=MockDataModule(
                seq_length=request["seq_length"],
                micro_batch_size=request["micro_batch_size"],
                global_batch_size=request["micro_batch_size"] * request["num_micro_batches"],
                num_workers=0,
                num_train_samples=1000,
                tokenizer=tokenizer,
            ),
            trainer=_trainer(request, clock),
            optim=nl.MegatronOptimizerModule(
                OptimizerConfig(optimizer="adam", lr=1e-4, bf16=True, use_distributed_optimizer=True)
            ),
            log=nl.NeMoLogger(log_dir=folder, use_datetime_version=False),
        )
    peak = round(torch.cuda.max_memory_allocated() / 2**30, 1) if device.has_cuda() else None
    return {"seconds": clock.seconds, "losses": clock.losses, "peak_gib": peak}


def _forward_without_mask(model: Any, batch: dict[str, Any]) -> Any:
    """NeMo's own insists on a mask where Transformer Engine is missing; its layers are causal without."""
    return model(batch["tokens"], batch["position_ids"], labels=batch["labels"])


def _shape(request: dict[str, Any]) -> Any:
    on_cpu = {} if device.has_cuda() else {"forward_step_fn": _forward_without_mask}
    return llm.GPTConfig(
        **request["shape"],
        seq_length=request["seq_length"],
        make_vocab_size_divisible_by=128,
        position_embedding_type="learned_absolute",
        share_embeddings_and_output_weights=True,
        gradient_accumulation_fusion=False,
        bias_activation_fusion=True,
        masked_softmax_fusion=device.has_cuda(),
        bias_dropout_fusion=True,
        cross_entropy_loss_fusion=True,
        **on_cpu,
    )


def _trainer(request: dict[str, Any], clock: _Clock) -> Any:
    recipe = request["fp8_recipe"]
    fp8 = {"fp8": "hybrid", "fp8_recipe": recipe, "fp8_param_gather": True} if recipe else {}
    return nl.Trainer(
        accelerator="gpu" if device.has_cuda() else "cpu",
        devices=1,
        max_steps=request["steps"],
        limit_val_batches=0,
        val_check_interval=None,
        log_every_n_steps=1,
        logger=False,
        enable_checkpointing=False,
        callbacks=[clock],
        plugins=nl.MegatronMixedPrecision(
            precision="bf16-mixed",
            params_dtype=torch.bfloat16,
            pipeline_dtype=torch.bfloat16,
            autocast_enabled=False,
            grad_reduce_in_fp32=False,
            **fp8,
        ),
        strategy=nl.MegatronStrategy(
            ddp=DistributedDataParallelConfig(use_distributed_optimizer=True, grad_reduce_in_fp32=False),
            ckpt_async_save=False,
        ),
    )


if __name__ == "__main__":
    asked, answer = map(Path, sys.argv[1:])
    answer.write_text(json.dumps(main(json.loads(asked.read_text()))))
