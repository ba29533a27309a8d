"""What one setting may be, whatever the others are: numbers in their range, words from their list."""

import importlib.util
import math
from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any

from xelm_nemo.config.schema import RunConfig
from xelm_nemo.evaluation.config import TASK_MIXINGS
from xelm_nemo.launch.config import STOP_SIGNALS
from xelm_nemo.merge.config import GATE_STARTS
from xelm_nemo.model.config import ACTIVATIONS, ARCHITECTURES
from xelm_nemo.rounds.config import KINDS

FINISHING_STAGES = ("evaluate", "export")

# The least that a number may be; None, where a setting takes it, leaves the choice to the program.
AT_LEAST = {
    "corpus.num_shards": 1,
    "tokenizer.vocab_size": 12,  # XGLM's four special tokens and seven made-up words, and one piece
    "clustering.num_clusters": 1,
    "clustering.max_features": 2,
    "clustering.svd_dim": 1,
    "clustering.max_iterations": 1,
    "clustering.num_starts": 1,
    "model.num_layers": 1,
    "model.hidden_size": 4,  # XGLM's positions divide by hidden_size / 2 - 1
    "model.ffn_hidden_size": 1,
    "model.num_attention_heads": 1,
    "model.max_position_embeddings": 1,
    "model.word_embed_proj_dim": 1,
    "seed_model.train_iters": 0,
    "seed_model.threads": 1,
    "seed_model.vocab_size": 1,
    "parallel.tensor_model_parallel_size": 1,
    "parallel.pipeline_model_parallel_size": 1,
    "parallel.data_parallel_size": 1,
    "parallel.expert_model_parallel_size": 1,
    "optim.min_lr": 0,
    "optim.lr_warmup_iters": 0,
    "optim.weight_decay": 0,
    "optim.clip_grad": 0,
    "training.train_iters": 1,
    "training.global_batch_size": 1,
    "training.micro_batch_size": 1,
    "training.seq_length": 1,
    "training.skip_bad_steps": 0,
    "training.log_interval": 1,
    "training.save_interval": 1,
    "training.eval_interval": 1,
    "training.eval_sequences": 1,
    "checkpoint.keep_last": 1,
    "checkpoint.resume_at": 1,
    "dense.train_iters": 1,
    "upcycle.num_moe_experts": 2,
    "upcycle.moe_layer_freq": 1,
    "upcycle.moe_router_topk": 2,  # the weight of an only moe_expert would be 1, and teach the gate nothing
    "upcycle.moe_aux_loss_coeff": 0,
    "upcycle.train_iters": 1,
    "evaluation.max_docs": 1,
    "evaluation.batch_tokens": 1,
    "evaluation.stride": 1,
    "evaluation.bootstrap_samples": 1,
    "evaluation.num_fewshot": 0,
    "launch.max_parallel": 1,
    "launch.threads": 1,
    "launch.slurm.time": 1,
    "launch.slurm.ranks_per_node": 1,
    "launch.slurm.gpus_per_rank": 0,
    "launch.slurm.cpus_per_rank": 1,
    "launch.slurm.mem_gb": 0,
    "launch.slurm.file_jobs": 1,
    "launch.slurm.grace_seconds": 1,
    "launch.slurm.max_crashes": 0,
}
ABOVE_ZERO = (
    "optim.lr",
    "optim.adam_eps",
    "seed_model.lr",
    "dense.lr",
    "upcycle.lr",
    "upcycle.moe_expert_capacity_factor",
    "launch.step_timeout",
    "router.temperature",
    "evaluation.task_temperature",
    "model.layernorm_epsilon",
    "model.init_method_std",
)
UP_TO_ONE = ("router.cluster_ratio",)
BELOW_ONE = ("model.hidden_dropout", "model.attention_dropout", "optim.adam_beta1", "optim.adam_beta2")
SEEDS = ("corpus.seed", "clustering.seed", "seed_model.seed", "training.seed", "evaluation.seed")
_MAX_SEED = 2**32 - 1  # scikit-learn's
CHOICES = {
    "corpus.on_bad_line": ("error", "skip"),
    "tokenizer.kind": ("unigram", "bpe"),
    "clustering.method": ("tfidf", "typology", "random"),
    "clustering.analyzer": ("word", "char_wb"),
    "model.architecture": ARCHITECTURES,
    "model.activation": ACTIVATIONS,
    "precision.params_dtype": ("auto", "fp32", "bf16"),
    "precision.fp8.recipe": (None, "delayed", "tensorwise", "blockwise"),
    "parallel.recompute_granularity": (None, "selective", "full"),
    "rounds.kind": KINDS,
    "seed_model.source": ("hf", "metaseq", "nemo", "model", "random"),
    "upcycle.gate_init": GATE_STARTS,
    "evaluation.task_mixing": TASK_MIXINGS,
    "router.rule": ("upstream", "paper"),
    "launch.name": ("local", "slurm"),
}


def number_problems(config: RunConfig) -> list[str]:
    """Numbers out of their range; checks of several settings count on there being none."""
    problems = [
        f"{key}={value} must be at least {least}"
        for key, least in AT_LEAST.items()
        if (value := attrgetter(key)(config)) is not None and not least <= value < math.inf
    ]
    problems += _misfits(config, ABOVE_ZERO, "above 0", lambda n: 0 < n < math.inf)
    problems += _misfits(config, UP_TO_ONE, "above 0 and at most 1", lambda n: 0 < n <= 1)
    problems += _misfits(config, BELOW_ONE, "at least 0 and below 1", lambda n: 0 <= n < 1)
    problems += _misfits(config, SEEDS, f"from 0 to {_MAX_SEED}", lambda n: 0 <= n <= _MAX_SEED)
    return problems


def choice_problems(config: RunConfig) -> list[str]:
    """Words and lists that mean nothing."""
    values = {key: attrgetter(key)(config) for key in CHOICES}
    problems = [
        f"{key}={value!r} is not known; use one of {list(CHOICES[key])}"
        for key, value in values.items()
        if value not in CHOICES[key]
    ]
    unknown = [stage for stage in config.finish_with if stage not in FINISHING_STAGES]
    if unknown:
        problems.append(f"finish_with={unknown} are not stages after training; use {list(FINISHING_STAGES)}")
    signals = config.launch.stop_signals
    if not signals or not set(signals) <= set(STOP_SIGNALS):
        problems.append(f"launch.stop_signals={signals} must be some of {list(STOP_SIGNALS)}; use [USR2]")
    ngram_range = config.clustering.ngram_range
    if len(ngram_range) != 2 or not 1 <= ngram_range[0] <= ngram_range[1]:
        problems.append(
            f"clustering.ngram_range={ngram_range} is not a shortest and a longest n-gram; "
            "use for example [1,3]"
        )
    fit_on = config.clustering.fit_on
    if fit_on != "all" and not _are_shards(fit_on):
        problems.append(
            f"clustering.fit_on={fit_on!r} names no shards; use all, train/00000 or [train/00000,train/00001]"
        )
    traced = config.training.profile_iters or []
    last = max(config.round_iters, default=0)  # a shorter round traces those that it has
    if outside := [iteration for iteration in traced if not 1 <= iteration <= last]:
        problems.append(
            f"training.profile_iters={traced} has {outside}, which are no iterations of this training; "
            f"use some of 1 to {last}"
        )
    project = config.training.wandb_project
    if project is not None and importlib.util.find_spec("wandb") is None:
        problems.append(
            f"training.wandb_project={project!r} wants the package wandb, which is not installed; "
            "pip install 'xelm_nemo[wandb]', or leave it out"
        )
    return problems


def _are_shards(value: Any) -> bool:
    names = [value] if isinstance(value, str) else value
    return isinstance(names, list) and bool(names) and all("/" in str(name).strip("/") for name in names)


def _misfits(config: RunConfig, keys: Iterable[str], wanted: str, fits: Callable[[Any], bool]) -> list[str]:
    values = {key: attrgetter(key)(config) for key in keys}
    return [
        f"{key}={value} must be {wanted}"
        for key, value in values.items()
        if value is not None and not fits(value)
    ]
