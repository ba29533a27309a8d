"""What two settings say together; all problems of a configuration are reported at once."""

from xelm_nemo.config.schema import RunConfig
from xelm_nemo.errors import ConfigError
from xelm_nemo.model.config import ACTIVATIONS, ARCHITECTURES, layout_problems

FINISHING_STAGES = ("evaluate", "export")


def check(config: RunConfig) -> None:
    """Refuse a configuration that cannot work, whatever the machine.

    The sizes of an imported seed model are its own; `check_sizes` is for those, when they are known.

    Raises:
        ConfigError: every problem, each with the value found and what would do.
    """
    problems = [*_corpus(config), *_batches(config), *_choices(config)]
    if config.seed_model.source != "hf":
        problems += _sizes(config)
    _refuse(problems)


def check_sizes(config: RunConfig) -> None:
    """Refuse what does not fit the model's sizes.

    Raises:
        ConfigError: as `check`.
    """
    _refuse(_sizes(config))


def _refuse(problems: list[str]) -> None:
    if problems:
        raise ConfigError("; ".join(problems) + ".")


def _corpus(config: RunConfig) -> list[str]:
    corpus, clusters = config.corpus, config.clustering.num_clusters
    problems = []
    if corpus.path is None and corpus.builtin is None:
        problems.append(
            "corpus.path is not set; give a folder of {train,valid}/<shard>/*.jsonl, or corpus=udhr"
        )
    if corpus.path is None and corpus.builtin not in (None, "udhr"):
        problems.append(f"corpus.builtin={corpus.builtin!r} is not shipped; use 'udhr'")
    if clusters < 1:
        problems.append(f"clustering.num_clusters={clusters} must be at least 1")
    outside = [cluster for cluster in config.train_clusters if not 0 <= cluster < clusters]
    if outside:
        problems.append(f"training.train_clusters={outside} are not among clusters 0..{clusters - 1}")
    if config.seed_model.source == "hf" and config.seed_model.path is None:
        problems.append(
            "seed_model.path is not set; give a Hugging Face folder or hub id, or seed_model=random"
        )
    return problems


def _batches(config: RunConfig) -> list[str]:
    training, clusters = config.training, max(1, config.clustering.num_clusters)
    ranks = config.parallel.data_parallel_size
    step, micro = training.global_batch_size, training.micro_batch_size * ranks
    problems = []
    if step % clusters or (step // clusters) % micro:
        unit = clusters * micro
        fitting = max(1, round(step / unit)) * unit
        problems.append(
            f"training.global_batch_size={step} does not divide into clustering.num_clusters={clusters} "
            f"experts x training.micro_batch_size={training.micro_batch_size} x "
            f"parallel.data_parallel_size={ranks}; use a multiple of {unit}, such as {fitting}"
        )
    iterations = config.dense.train_iters
    uneven = iterations and ((step * training.train_iters) % iterations or config.dense_batch_size % micro)
    if config.dense.enabled and uneven:
        problems.append(
            f"dense.train_iters={iterations} does not give whole micro-batches for as many tokens as the "
            f"experts see ({step} x {training.train_iters} sequences)"
        )
    return problems


def _sizes(config: RunConfig) -> list[str]:
    problems, tp = layout_problems(config.model, config.parallel), config.parallel.tensor_model_parallel_size
    if config.seq_length > config.model.max_position_embeddings:
        problems.append(
            f"training.seq_length={config.seq_length} is longer than "
            f"model.max_position_embeddings={config.model.max_position_embeddings}"
        )
    if config.parallel.sequence_parallel and config.seq_length % tp:
        problems.append(
            f"training.seq_length={config.seq_length} is not a multiple of "
            f"parallel.tensor_model_parallel_size={tp}, as sequence parallelism needs"
        )
    return problems


def _choices(config: RunConfig) -> list[str]:
    choices = {
        "clustering.method": (config.clustering.method, ("tfidf", "typology", "random")),
        "clustering.analyzer": (config.clustering.analyzer, ("word", "char_wb")),
        "model.architecture": (config.model.architecture, ARCHITECTURES),
        "model.activation": (config.model.activation, ACTIVATIONS),
        "precision.params_dtype": (config.precision.params_dtype, ("auto", "fp32", "bf16")),
        "seed_model.source": (config.seed_model.source, ("hf", "random")),
        "router.rule": (config.router.rule, ("upstream", "paper")),
        "launch.name": (config.launch.name, ("local",)),
    }
    problems = [
        f"{key}={value!r} is not known; use one of {list(known)}"
        for key, (value, known) in choices.items()
        if value not in known
    ]
    unknown = [stage for stage in config.finish_with if stage not in FINISHING_STAGES]
    if unknown:
        problems.append(f"finish_with={unknown} are not stages after training; use {list(FINISHING_STAGES)}")
    return problems
