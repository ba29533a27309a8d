"""What two settings say together; all problems of a configuration are reported at once."""

import math

from xelm_nemo.config.rounds import rounds_problems
from xelm_nemo.config.schema import RunConfig
from xelm_nemo.config.values import choice_problems, number_problems
from xelm_nemo.errors import ConfigError
from xelm_nemo.evaluation.config import rule_problems, task_problems
from xelm_nemo.expert.config import DenseConfig
from xelm_nemo.merge.config import UpcycleConfig
from xelm_nemo.model.config import SparseConfig, fp8_problems, layout_problems
from xelm_nemo.model.sparse import sparse_problems

SHIPPED_SPLITS = ("train", "valid", "test")
# seed_model.source -> what its path is.
_SEED_PATHS = {
    "hf": "a Hugging Face folder or hub id",
    "metaseq": "a consolidated .pt file or the folder of its parts",
    "nemo": "a NeMo checkpoint's folder",
    "model": "a finished model's folder, such as `export format=upcycled` writes",
}


def check(config: RunConfig) -> None:
    """Refuse a configuration that cannot work, whatever the machine.

    The sizes of an imported seed model are its own; `check_sizes` is for those, when they are known.

    Raises:
        ConfigError: every problem, each with the value found and what would do.
    """
    # Numbers out of their range end it: the other checks divide by them.
    problems = (
        number_problems(config)
        or rounds_problems(config)
        or [
            *_corpus(config),
            *([] if config.rounds.kind == "adapt" else _seed_model(config)),
            *_clusters(config),
            *_batches(config),
            *_best(config),
            *_nodes(config),
            *(_sizes(config) if _has_own_sizes(config) else []),
            *rule_problems(config.evaluation, can_route=config.clustering.method == "tfidf"),
            *task_problems(config.tasks, config.evaluation),
        ]
    )
    _refuse([*problems, *choice_problems(config)])


def check_sizes(config: RunConfig) -> None:
    """Refuse what does not fit the model's sizes.

    Raises:
        ConfigError: as `check`.
    """
    _refuse(_sizes(config))


def _has_own_sizes(config: RunConfig) -> bool:
    return config.seed_model.source == "random" and config.rounds.kind != "adapt"


def _refuse(problems: list[str]) -> None:
    if problems:
        raise ConfigError("; ".join(problems) + ".")


def _corpus(config: RunConfig) -> list[str]:
    corpus, problems = config.corpus, []
    if corpus.path is not None and corpus.raw is not None:
        problems.append(
            f"corpus.raw={corpus.raw!r} is made into a corpus, and corpus.path={corpus.path!r} "
            "is one already; set one of the two to null"
        )
    source, target = corpus.source_key, corpus.target_key
    if (source is None) != (target is None):
        problems.append(
            f"corpus.source_key={source!r} and corpus.target_key={target!r}: instruction data has both; set "
            "both, such as src and tgt, or neither"
        )
    elif source is not None and corpus.path is None:
        problems.append(
            f"corpus.source_key={source!r} needs corpus.path, a folder of {{train,valid}}/<shard>/*.jsonl; "
            "raw files and the shipped corpus have no targets"
        )
    if corpus.path is not None or corpus.raw is not None:
        return problems
    if corpus.builtin is None:
        problems.append(
            "corpus.path is not set; give a folder of {train,valid}/<shard>/*.jsonl, or corpus=udhr"
        )
    if corpus.builtin not in (None, "udhr"):
        problems.append(f"corpus.builtin={corpus.builtin!r} is not shipped; use 'udhr'")
    splits = [corpus.train_split, corpus.valid_split, corpus.test_split, *(config.evaluation.subsets or [])]
    if not set(splits) <= set(SHIPPED_SPLITS):
        problems.append(
            f"corpus.*_split and evaluation.subsets={splits} are not all splits of the shipped corpus; "
            f"use {list(SHIPPED_SPLITS)}"
        )
    return problems


def _seed_model(config: RunConfig) -> list[str]:
    source, problems = config.seed_model.source, []
    if source in _SEED_PATHS and config.seed_model.path is None:
        problems.append(f"seed_model.path is not set; give {_SEED_PATHS[source]}, or seed_model=random")
    if source == "metaseq" and config.tokenizer.path is None:
        problems.append(
            "tokenizer.path is not set, and a metaseq checkpoint brings no tokenizer; give the Hugging Face "
            "folder or hub id of the model's own, such as facebook/xglm-564M or facebook/opt-125m"
        )
    ids, rows = config.tokenizer.vocab_size, config.seed_model.vocab_size
    if source == "random" and config.tokenizer.path is None and rows is not None and rows < ids:
        problems.append(f"seed_model.vocab_size={rows} is less than tokenizer.vocab_size={ids}")
    return problems


def _clusters(config: RunConfig) -> list[str]:
    chosen, clusters, problems = config.train_clusters, config.clustering.num_clusters, []
    remap = config.clustering.remap
    if remap is not None and (config.clustering.assignment is None or remap.count("=") != 1):
        problems.append(
            f"clustering.remap={remap!r} is of no use; write it from=to, and set clustering.assignment"
        )
    own = config.own_clusters
    outside = [cluster for cluster in chosen if cluster not in own]
    unknown = [k for k in config.evaluation.clusters or [] if not 0 <= k < clusters]
    if unknown:
        problems.append(f"evaluation.clusters={unknown} are not among clusters 0..{clusters - 1}")
    if outside:
        problems.append(f"training.train_clusters={outside} are not among clusters {own[0]}..{own[-1]}")
    if len(set(chosen)) < len(chosen):
        problems.append(f"training.train_clusters={chosen} has a cluster twice; name each once")
    return problems


def _batches(config: RunConfig) -> list[str]:
    training, ranks = config.training, config.parallel.data_parallel_size
    step, micro = training.global_batch_size, training.micro_batch_size * ranks
    problems, unit = [], math.lcm(*config.round_sizes) * micro
    if step % unit:
        fitting = max(1, round(step / unit)) * unit
        problems.append(
            f"training.global_batch_size={step} does not divide into {_experts(config)} "
            f"x training.micro_batch_size={training.micro_batch_size} x "
            f"parallel.data_parallel_size={ranks}; use a multiple of {unit}, such as {fitting}"
        )
    all_iters = sum(config.round_iters)
    baselines: dict[str, tuple[DenseConfig | UpcycleConfig, int]] = {
        "dense": (config.dense, config.dense_batch_size),
        "upcycle": (config.upcycle, config.upcycle_batch_size),
    }
    for name, (baseline, size) in baselines.items():
        iterations = baseline.train_iters
        uneven = iterations and ((step * all_iters) % iterations or size % micro)
        if baseline.enabled and uneven:
            problems.append(
                f"{name}.train_iters={iterations} does not give whole micro-batches for as many tokens as "
                f"the experts see ({step} x {all_iters} sequences)"
            )
    return problems


def _experts(config: RunConfig) -> str:
    """How many experts share a step, in the words of the settings that say so."""
    sizes = config.round_sizes
    if config.rounds.kind == "hmr":
        return f"rounds of {sizes} experts"
    if config.rounds.kind == "adapt":
        return f"rounds.languages={config.rounds.languages}, {sizes[0]} experts,"
    return f"clustering.num_clusters={sizes[0]} experts"


def _best(config: RunConfig) -> list[str]:
    training = config.training
    evals, saves = training.eval_interval, training.save_interval
    last = min(config.round_iters)  # every round chooses among its own
    if not config.checkpoint.keep_best or math.lcm(evals, saves) < last:
        return []
    return [
        f"checkpoint.keep_best=true has nothing to choose from: training.eval_interval={evals} and "
        f"training.save_interval={saves} first meet at iteration {min(math.lcm(evals, saves), last)}, the "
        f"last; use one number for both, of at most {max(1, last // 2)}"
    ]


def _nodes(config: RunConfig) -> list[str]:
    ranks, on_node = config.parallel.num_ranks, config.launch.slurm.ranks_per_node
    if config.launch.name != "slurm" or ranks <= on_node or ranks % on_node == 0:
        return []
    return [
        f"launch.slurm.ranks_per_node={on_node} leaves a node half empty with the {ranks} ranks of "
        f"parallel.*; use one of {[n for n in range(1, ranks + 1) if ranks % n == 0]}"
    ]


def _sizes(config: RunConfig) -> list[str]:
    problems, tp = layout_problems(config.model, config.parallel), config.parallel.tensor_model_parallel_size
    tokens = config.training.micro_batch_size * config.seq_length
    problems += fp8_problems(config.model, config.parallel, config.precision, tokens)
    problems += _sparse(config)
    if config.seq_length > config.model.max_position_embeddings:
        problems.append(
            f"training.seq_length={config.seq_length} is longer than "
            f"model.max_position_embeddings={config.model.max_position_embeddings}"
        )
    stride = config.evaluation.stride
    if stride is not None and stride > config.seq_length:
        problems.append(
            f"evaluation.stride={stride} would skip tokens; "
            f"use at most training.seq_length={config.seq_length}"
        )
    if config.parallel.sequence_parallel and config.seq_length % tp:
        problems.append(
            f"training.seq_length={config.seq_length} is not a multiple of "
            f"parallel.tensor_model_parallel_size={tp}, as sequence parallelism needs"
        )
    return problems


def _sparse(config: RunConfig) -> list[str]:
    """What keeps models with moe_experts from being made or trained so."""
    if isinstance(config.model, SparseConfig) and config.upcycle.enabled:
        return [
            f"upcycle.enabled=true: the seed model has {config.model.num_moe_experts} moe_experts already; "
            "set it to false, and the experts are trained from that model"
        ]
    shape = config.upcycled_shape if config.upcycle.enabled else config.model
    problems = sparse_problems(shape, config.parallel)
    if isinstance(config.model, SparseConfig) and config.tasks:
        problems.append(
            "tasks score exported experts, and models with moe_experts are not exported; leave it out"
        )
    if isinstance(shape, SparseConfig) and config.precision.fp8.is_used:
        problems.append("precision.fp8 is not for models with moe_experts; set precision=bf16")
    return problems
