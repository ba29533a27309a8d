"""What the models of a run take of GPU memory, as far as it is known before they are trained."""

from pathlib import Path

from xelm_nemo import device
from xelm_nemo.checkpoint.architectures import read_vocab_size
from xelm_nemo.checkpoint.facts import FACTS, load_facts
from xelm_nemo.expert.job import TrainJob
from xelm_nemo.expert.memory import check_memory, describe
from xelm_nemo.stages.jobs import is_finished, round_jobs, seed_job
from xelm_nemo.stages.run import Run, inherited


def check_gpus(run: Run) -> None:
    """Refuse a run whose models this machine's GPUs surely cannot hold, before anything is written.

    Where the vocabulary's size is not known yet, the workers see to it.

    Raises:
        ConfigError: as `check_memory`.
    """
    vocab_size = _vocab_size(run) if device.total_bytes() else None
    if vocab_size is not None:
        for job in _jobs(run):
            if not is_finished(job):
                check_memory(job, vocab_size=vocab_size)


def memory_lines(run: Run) -> list[str]:
    """A line for each model that takes other memory than those before it; none if sizes are not known yet."""
    vocab_size = _vocab_size(run)
    if vocab_size is None:
        return []
    names: dict[str, list[str]] = {}
    for job in _jobs(run):
        names.setdefault(describe(job, vocab_size), []).append(job.name)
    return [f"{alike[0] if len(names) > 1 else 'memory'}: {line}" for line, alike in names.items()]


def _jobs(run: Run) -> list[TrainJob]:
    return [*([seed_job(run)] if run.config.seed_model.train_iters else []), *round_jobs(run)]


def _vocab_size(run: Run) -> int | None:
    """The words of the seed model; None where only its checkpoint or a tokenizer could tell."""
    seed_model, tokenizer = run.config.seed_model, run.config.tokenizer
    if run.base is not None:
        return load_facts(next(iter(inherited(run).values())).model).vocab_size
    if seed_model.source == "random" and (seed_model.vocab_size or not tokenizer.path):
        return seed_model.vocab_size or tokenizer.vocab_size
    if seed_model.source == "hf" and Path(str(seed_model.path)).is_dir():
        return read_vocab_size(Path(str(seed_model.path)))
    return load_facts(run.seed_init).vocab_size if (run.seed_init / FACTS).is_file() else None
