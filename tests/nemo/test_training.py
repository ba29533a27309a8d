"""NeMo's own `llm.train` against our loop, and what becomes of its checkpoint."""

import csv
import json

import pytest
import torch

from tests.helpers.megatron_cpu import CLUSTERS, SEQ_LENGTH, VOCAB_SIZE, Workshop, checkpoint_tensors, losses
from tests.helpers.nemo import needs_nemo, small_config
from xelm_nemo.artifacts import Recipe
from xelm_nemo.checkpoint.nemo import import_nemo
from xelm_nemo.corpus.config import TokenizerConfig
from xelm_nemo.corpus.tokenizer import train_tokenizer
from xelm_nemo.expert.config import OptimConfig
from xelm_nemo.model.config import ModelConfig

pytestmark = needs_nemo
STEPS = 5
SHAPE = ModelConfig(
    num_layers=2,
    hidden_size=32,
    ffn_hidden_size=64,
    num_attention_heads=2,
    max_position_embeddings=SEQ_LENGTH,
    hidden_dropout=0.0,
    attention_dropout=0.0,
)
# Every part of the update counts: warm-up, decay, weight decay, and a norm that is clipped.
OPTIM = OptimConfig(lr=1e-2, min_lr=1e-3, lr_warmup_iters=2, weight_decay=0.1, clip_grad=0.3)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with `ours`, a job that our loop trained, and `checkpoint`, NeMo's; NeMo's losses."""
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    from xelm_nemo.expert.job import TrainJob
    from xelm_nemo.expert.loop import train

    root = tmp_path_factory.mktemp("runs")
    workshop = Workshop(root)
    workshop.set_up(SHAPE)
    train_tokenizer(["All human beings are born free."], TokenizerConfig(vocab_size=60), root / "tokenizer")
    job = workshop.job("ours", SHAPE, train_iters=STEPS, optim=OPTIM, save_interval=STEPS)
    train(TrainJob.load(job))
    get_cuda_rng_tracker().reset()  # else NeMo would go on with generators that our loop made
    return root, train_with_nemo(root)


def train_with_nemo(root):
    """Train the same steps from the same seed model, and return their losses."""
    from lightning.pytorch.loggers import CSVLogger
    from megatron.core.distributed import DistributedDataParallelConfig
    from nemo import lightning as nl
    from nemo.collections import llm

    from xelm_nemo.nemo.context import write_checkpoint
    from xelm_nemo.nemo.cpu import enter
    from xelm_nemo.nemo.data import TokenShards
    from xelm_nemo.nemo.models import XGLMModel
    from xelm_nemo.nemo.optim import adamw

    enter()
    (root / "seed_checkpoint").mkdir()
    write_checkpoint(root / "seed_model", root / "seed_checkpoint", tokenizer=root / "tokenizer")
    trainer = nl.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=STEPS,
        limit_val_batches=0,
        val_check_interval=None,
        log_every_n_steps=1,
        logger=CSVLogger(root, name="", version=""),
        enable_checkpointing=False,
        strategy=nl.MegatronStrategy(
            ddp=DistributedDataParallelConfig(use_distributed_optimizer=True, grad_reduce_in_fp32=True),
            ckpt_async_save=False,
        ),
    )
    checkpoints = nl.ModelCheckpoint(save_last=False, monitor="reduced_train_loss", every_n_train_steps=STEPS)
    llm.train(
        model=XGLMModel(small_config("xglm", SHAPE, vocab_size=VOCAB_SIZE)),
        data=TokenShards(
            str(root / "tokens"),
            CLUSTERS,
            seq_length=SEQ_LENGTH,
            micro_batch_size=2,
            global_batch_size=8,
            seed=1,
        ),
        trainer=trainer,
        optim=adamw(OPTIM),
        log=nl.NeMoLogger(log_dir=str(root / "log"), use_datetime_version=False, ckpt=checkpoints),
        resume=nl.AutoResume(restore_config=nl.RestoreConfig(path=str(root / "seed_checkpoint"))),
    )
    (saved,) = (root / "log/default/checkpoints").iterdir()
    saved.rename(root / "checkpoint")
    with (root / "metrics.csv").open() as file:
        return [float(row["reduced_train_loss"]) for row in csv.DictReader(file)]


def test_nemo_trains_step_for_step_with_the_losses_of_our_loop(runs):
    root, found = runs
    expected = [losses(root / "ours")["loss", step + 1] for step in range(STEPS)]
    assert found == pytest.approx(expected, rel=1e-5)
    assert len(set(expected)) == STEPS


def test_weights_that_nemo_trained_become_our_model_without_its_optimizer(runs, tmp_path):
    root, _ = runs
    import_nemo(root / "checkpoint", tmp_path / "model", Recipe("model", {}))
    found, expected = (
        checkpoint_tensors(folder / "weights") for folder in (tmp_path / "model", root / "ours/model")
    )
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6, msg=name)
    facts = json.loads((tmp_path / "model/model.json").read_text())
    assert (facts["vocab_size"], facts["dtype"]) == (VOCAB_SIZE, "fp32")
    assert facts["tokenizer"].startswith(str(root / "checkpoint/context"))


def test_what_nemo_trained_leaves_through_its_own_exporter(runs, tmp_path):
    from nemo.collections import llm
    from safetensors.torch import load_file

    from xelm_nemo.checkpoint.hf import export_hf

    root, _ = runs
    llm.export_ckpt(root / "checkpoint", "hf", output_path=tmp_path / "theirs")
    import_nemo(root / "checkpoint", tmp_path / "model", Recipe("model", {}))
    export_hf(tmp_path / "model", tmp_path / "ours", tokenizer=root / "tokenizer")
    theirs, ours = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)
