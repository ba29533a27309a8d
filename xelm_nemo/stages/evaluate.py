"""Stage `evaluate`: experts, dense baseline and ensembles on held-out documents."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

from xelm_nemo import artifacts
from xelm_nemo.artifacts import Recipe
from xelm_nemo.clustering.clusterer import Clusterer
from xelm_nemo.corpus.tokenizer import encode_document, load_tokenizer
from xelm_nemo.evaluation.result import EvaluationResult, read_result, write_result
from xelm_nemo.files import read_json
from xelm_nemo.log import METRICS
from xelm_nemo.stages.cluster import REPORT_JSON, language_experts
from xelm_nemo.stages.jobs import finished_models
from xelm_nemo.stages.run import Run
from xelm_nemo.stages.stage import Product, stage_of

RESULT, REPORT_MD = "result.json", "report.md"


def _recipe(run: Run) -> Recipe:
    config = run.config
    settings: dict[str, Any] = {
        "evaluation": dataclasses.asdict(config.evaluation),
        "router": dataclasses.asdict(config.router),
    }
    settings |= {"split": config.corpus.test_split, "seq_length": run.sized.seq_length}
    settings |= run.corpus_keys()
    inputs = {"clusterer": run.clusterer, "clusters": run.clusters, "test": run.split("test")}
    return Recipe("evaluation", settings, inputs | finished_models(run))


def _evaluate(run: Run, folder: Path) -> None:
    from xelm_nemo.evaluation.plots import write_plots
    from xelm_nemo.evaluation.report import write_report

    result = _score(run)
    models = finished_models(run)
    mixes = {row["cluster"]: row["languages"] for row in read_json(run.clusters / REPORT_JSON)["clusters"]}
    languages = {lang for mix in mixes.values() for lang in mix}
    counts = {lang: {k: mix[lang] for k, mix in mixes.items() if lang in mix} for lang in sorted(languages)}
    metrics = {name: model.parent / METRICS for name, model in models.items()}
    plots = write_plots(folder, result, metrics=metrics, documents=counts)
    write_result(folder / RESULT, result)
    write_report(folder / REPORT_MD, result, plots=plots)


def _score(run: Run) -> EvaluationResult:
    """Evaluate in this process, one model in memory at a time."""
    from xelm_nemo import device, parallel
    from xelm_nemo.checkpoint import store
    from xelm_nemo.checkpoint.facts import load_facts
    from xelm_nemo.evaluation.perplexity import evaluate_ensemble
    from xelm_nemo.evaluation.scoring import HeldOutDocument, ModelSource
    from xelm_nemo.model.config import ParallelConfig

    def load(folder: Path) -> Any:
        return store.load_model(folder, ParallelConfig()).eval().logits

    clusterer = Clusterer.load(run.clusterer)
    documents = list(run.documents("test"))
    held_out = [
        HeldOutDocument(document.text, document.lang, cluster)
        for document, cluster in zip(documents, clusterer.assign(documents), strict=True)
    ]
    folders = finished_models(run)
    sources = [
        ModelSource(name, artifacts.check(folder, "model")["digest"], partial(load, folder))
        for name, folder in folders.items()
    ]
    experts = run.config.clustering.num_clusters
    tokenizer = load_tokenizer(run.tokenizer)
    with parallel.model_parallel(threads=device.cores(), alone=True):
        return evaluate_ensemble(
            held_out,
            dataset=f"{run.config.name}/{run.config.corpus.test_split}",
            experts=sources[:experts],
            dense=sources[experts] if len(sources) > experts else None,
            tokenizer=tokenizer,
            encode=partial(encode_document, tokenizer),
            clusterer=clusterer,
            language_expert=language_experts(run) or None,
            seq_length=run.sized.seq_length,
            router=run.config.router,
            config=run.config.evaluation,
            folder=run.folder / "log_probs",
            device=device.device(),
            training_tokens={name: load_facts(folder).consumed_tokens for name, folder in folders.items()},
        )


def _show(run: Run) -> None:
    from xelm_nemo.evaluation.report import print_report

    print_report(read_result(run.evaluation / RESULT))


EVALUATE = stage_of("evaluate", Product(lambda run: run.evaluation, _recipe, _evaluate), finish=_show)
