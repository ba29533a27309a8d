"""Stage `evaluate`: experts, dense baseline and ensembles on held-out documents."""

import dataclasses
import logging
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xelm_nemo import artifacts, log
from xelm_nemo.artifacts import Recipe
from xelm_nemo.checkpoint.facts import ModelFacts, load_facts
from xelm_nemo.checkpoint.siblings import check_siblings
from xelm_nemo.clustering.clusterer import Clusterer
from xelm_nemo.config.compose import compose
from xelm_nemo.corpus.tokenizer import encode_document, load_tokenizer
from xelm_nemo.errors import ArtifactError, CheckpointError, ConfigError
from xelm_nemo.evaluation.config import recorded_evaluation
from xelm_nemo.evaluation.costs import cost_of
from xelm_nemo.evaluation.result import EvaluationResult, read_results, read_task_results, write_results
from xelm_nemo.files import read_ahead, read_json
from xelm_nemo.log import METRICS
from xelm_nemo.model.config import SparseConfig
from xelm_nemo.stages.cluster import REPORT_JSON, language_experts
from xelm_nemo.stages.jobs import UPCYCLED, current_models, finished_models
from xelm_nemo.stages.rounds import ancestors_tokens
from xelm_nemo.stages.run import Run, settled
from xelm_nemo.stages.stage import Product, stage_of
from xelm_nemo.stages.tasks import score_tasks, stamps
from xelm_nemo.stages.train import TRAIN

if TYPE_CHECKING:
    from xelm_nemo.evaluation.documents import HeldOutDocument
    from xelm_nemo.evaluation.perplexity import Models

logger = logging.getLogger(__name__)
RESULT, REPORT_MD = "result.json", "report.md"


def subsets(run: Run) -> list[str]:
    """The splits to evaluate on."""
    return run.config.evaluation.subsets or [run.config.corpus.test_split]


def assist(arguments: Sequence[str]) -> None:
    """What the ranks beside the first do under torchrun: score models, while rank 0 runs the command.

    Raises:
        ConfigError: there is something to do before evaluation, which is not for many ranks.
    """
    log.set_up(rank=int(os.environ["RANK"]))
    run = Run(settled(compose(arguments)))
    if run.config.dry_run or EVALUATE.is_current(run):
        return
    if not TRAIN.is_current(run):
        raise ConfigError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}, and {run.folder} has no up-to-date experts; run "
            "`python -m xelm_nemo.train` first, as one process."
        )
    _score(run)


def _models(run: Run) -> dict[str, Path]:
    """The model folders to evaluate, by name: all of them, or with allow_missing those that there are."""
    return current_models(run) if run.config.evaluation.allow_missing else finished_models(run)


def _recipe(run: Run) -> Recipe:
    config = run.config
    settings: dict[str, Any] = {
        "evaluation": recorded_evaluation(config.evaluation),
        "router": dataclasses.asdict(config.router),
    }
    settings |= {"subsets": subsets(run), "seq_length": run.sized.seq_length}
    settings |= run.corpus_keys()
    if config.tasks:
        settings["tasks"] = stamps(run)
    inputs = {"clusterer": run.clusterer, "clusters": run.clusters}
    inputs |= {f"subset {name}": run.corpus / name for name in subsets(run)}
    return Recipe("evaluation", settings, inputs | _models(run) | _further(run))


def _further(run: Run) -> dict[str, Path]:
    """The model folders beside the run's own."""
    return {name: Path(folder) for name, folder in run.config.evaluation.models.items()}


def _evaluate(run: Run, folder: Path) -> None:
    from xelm_nemo.evaluation.plots import write_plots
    from xelm_nemo.evaluation.report import write_report

    results = _score(run)
    mixes = {row["cluster"]: row["languages"] for row in read_json(run.clusters / REPORT_JSON)["clusters"]}
    languages = {lang for mix in mixes.values() for lang in mix}
    counts = {lang: {k: mix[lang] for k, mix in mixes.items() if lang in mix} for lang in sorted(languages)}
    metrics = {name: model.parent / METRICS for name, model in _models(run).items()}
    plots = [write_plots(folder, results[0], metrics=metrics, documents=counts)]
    for name, result in zip(subsets(run)[1:], results[1:], strict=True):
        # Loss curves and clusters are the run's, and stand with the first subset.
        plots.append(write_plots(folder / name.replace("/", "_"), result, metrics={}))
    tasks = score_tasks(run)
    write_results(folder / RESULT, results, tasks)
    write_report(folder / REPORT_MD, results, plots=plots, tasks=tasks)


def _score(run: Run) -> list[EvaluationResult]:
    """Evaluate in this process and the others that torchrun started, if any, one model each at a time."""
    from xelm_nemo import device, parallel
    from xelm_nemo.ensemble.placement import Team
    from xelm_nemo.evaluation.evidence import Text
    from xelm_nemo.evaluation.perplexity import evaluate_ensemble

    artifacts.verify(run.clusterer)  # another one would weigh other experts, and nothing would show it
    clusterer, tokenizer = Clusterer.load(run.clusterer), load_tokenizer(run.tokenizer)
    encode = partial(encode_document, tokenizer)
    tp = _tensor_parallel_size(run)
    threads = max(1, device.cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    with parallel.model_parallel(tensor_model_parallel_size=tp, threads=threads) as layout:
        return evaluate_ensemble(
            {f"{run.config.name}/{name}": _held_out(run, name, clusterer) for name in subsets(run)},
            models=_sources(run, tp),
            text=Text(tokenizer, encode, clusterer, language_experts(run) or None),
            router=run.config.router,
            config=run.config.evaluation,
            folder=run.folder / "log_probs",
            device=device.device(),
            team=Team(layout.dp_rank, layout.dp_size, layout.rank % tp == 0, parallel.barrier),
        )


def _tensor_parallel_size(run: Run) -> int:
    """How many of torchrun's ranks hold a model together: one where any model is sparse.

    Moe_experts are not divided by it, and documents of all lengths not by sequence parallelism.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return 1
    models = (_models(run) | _further(run)).values()
    if any(isinstance(load_facts(model).shape, SparseConfig) for model in models):
        return 1
    return run.config.parallel.tensor_model_parallel_size


def _held_out(run: Run, subset: str, clusterer: Clusterer) -> "list[HeldOutDocument]":
    from xelm_nemo.evaluation.documents import HeldOutDocument

    documents = list(run.subset(subset))
    return [
        HeldOutDocument(document.text, document.lang, cluster, document.source)
        for document, cluster in zip(documents, clusterer.assign(documents), strict=True)
    ]


def _sources(run: Run, tensor_model_parallel_size: int) -> "Models":
    from xelm_nemo.checkpoint.lazy import DTYPES
    from xelm_nemo.evaluation.perplexity import Models
    from xelm_nemo.evaluation.scoring import ModelSource
    from xelm_nemo.model.documents import can_pack

    own = _models(run)
    folders = own | _further(run)
    facts = {name: load_facts(folder) for name, folder in folders.items()}
    experts = [f"expert{cluster}" for cluster in range(run.config.clustering.num_clusters)]
    if missing := [name for name in experts if name not in folders]:
        logger.warning("evaluate: without %s, not trained (evaluation.allow_missing)", ", ".join(missing))
    alike = {name: known for name, known in facts.items() if name in own and name != UPCYCLED}
    if alike:
        check_siblings(alike)
    for name in _further(run):
        _check_fits(name, facts[name], run)
    sources = {
        name: ModelSource(
            name,
            artifacts.check(folder, "model")["digest"],
            partial(_load, folder, tensor_model_parallel_size),
            partial(read_ahead, folder),
            packs=can_pack(facts[name].shape, DTYPES[facts[name].dtype]),
        )
        for name, folder in folders.items()
    }
    return Models(
        experts=[sources.get(name) for name in experts],
        dense=sources.get("dense"),
        others=[sources[name] for name in (UPCYCLED, *_further(run)) if name in sources],
        costs={name: cost_of(known, run.sized.seq_length) for name, known in facts.items()},
        seq_length=run.sized.seq_length,
        training_tokens={
            name: known.consumed_tokens + ancestors_tokens(run, name) for name, known in facts.items()
        },
    )


def _check_fits(name: str, facts: ModelFacts, run: Run) -> None:
    """See that a further model reads what the run's models read.

    Raises:
        CheckpointError: its words or its positions are fewer, or its words are others.
    """
    given = f"evaluation.models.{name}={run.config.evaluation.models[name]!r}"
    tokenizer, length = load_tokenizer(run.tokenizer), run.sized.seq_length
    if facts.vocab_size < len(tokenizer) or facts.shape.max_position_embeddings < length:
        raise CheckpointError(
            f"{given} has {facts.vocab_size} words and {facts.shape.max_position_embeddings} positions, and "
            f"the run's tokenizer {len(tokenizer)} and its context {length}; give a model made from the same "
            "seed model."
        )
    try:
        own = load_tokenizer(facts.tokenizer)
    except ArtifactError as error:
        return logger.warning("evaluate: %s is taken to have the run's words: %s", given, error)
    if own.get_vocab() != tokenizer.get_vocab():
        raise CheckpointError(
            f"{given} has other words than the run: its tokenizer is {facts.tokenizer}, and the run's "
            f"{run.tokenizer}; give a model made from the same seed model."
        )


def _load(folder: Path, tensor_model_parallel_size: int) -> Any:
    """A model as `evaluation.passes` runs it."""
    from xelm_nemo.checkpoint import store
    from xelm_nemo.model.config import ParallelConfig

    layout = ParallelConfig(tensor_model_parallel_size=tensor_model_parallel_size)
    return store.load_model(folder, layout, by_all_ranks=False).eval().target_log_prob


def _show(run: Run) -> None:
    from xelm_nemo.evaluation.report import print_report
    from xelm_nemo.evaluation.task_scores import print_tasks

    for result in read_results(run.evaluation / RESULT):
        print_report(result)
    if tasks := read_task_results(run.evaluation / RESULT):
        print_tasks(tasks)


EVALUATE = stage_of("evaluate", Product(lambda run: run.evaluation, _recipe, _evaluate), finish=_show)
