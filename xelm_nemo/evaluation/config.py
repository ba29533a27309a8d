"""Settings of evaluation."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

RULES = ("clustering", "uniform", "random", "top1_language", "product_of_experts", "bayes")
TEXT_RULES = ("clustering", "product_of_experts")  # these need the router, hence a tf-idf clusterer
SPREAD_RULES = ("clustering", "random", "product_of_experts")  # the router's temperature shapes their weights

# Families of tasks, and whether there is one for each language, as xnli_de: X-ELM's three and c-BTM's six.
TASKS = {
    **dict.fromkeys(("xnli", "xstorycloze", "word_translation"), True),
    **dict.fromkeys(("ag_news", "amazon_polarity", "dbpedia_14", "financial_phrasebank"), False),
    **dict.fromkeys(("glue-sst2", "tweet_eval-offensive"), False),
}
TASK_MIXINGS = ("tokens", "sequence", "logits")
SAMPLE = "sample"  # evaluation.task_data: the few rows that come with the package


@dataclass(frozen=True)
class EvaluationConfig:
    """What `evaluate` measures."""

    # Some of RULES; the first one is the headline. None: "clustering" if the clusterer places texts, and
    # "top1_language" if every document has an expert by its language; else "uniform".
    rules: list[str] | None = None
    top_k: list[int | None] = field(default_factory=lambda: [None, 1, 2])  # experts a token; None: all
    temperatures: list[float] = field(default_factory=list)  # besides router.temperature
    # Score each expert alone too. False runs an expert only on documents in which a rule gives it weight.
    each_expert: bool = True
    allow_missing: bool = False  # go on without the experts that are not trained
    # Further finished models beside the run's: +evaluation.models.NAME=DIR, such as an averaged one.
    models: dict[str, str] = field(default_factory=dict)
    subsets: list[str] | None = None  # splits, each with a result of its own; None: corpus.test_split
    clusters: list[int] | None = None  # only documents of these clusters; None: of all
    max_docs: int | None = None  # of each subset; None evaluates every document
    batch_tokens: int = 16384  # of a forward pass, padding included where documents are not packed
    # Documents longer than the context: None cuts them off, as X-ELM; a number moves a window on by so many
    # tokens, so that each scored token sees at least the context less this number.
    stride: int | None = None
    bootstrap_samples: int = 1000  # resamplings of the documents behind each 95 % interval
    seed: int = 1234  # of the resampling, and of the rule "random"
    # The settings of `tasks`: a folder of <task>/{test,train}.jsonl, or "sample".
    task_data: str | None = None
    num_fewshot: int = 0  # demonstrations before each example; c-BTM: 8, X-ELM: 0, 1, 4 or 8
    fewshot_seeds: list[int] = field(default_factory=lambda: [42])  # a run for each choice of demonstrations
    demo_lang: str | None = None  # the demonstrations' language; None: the task's own
    # "tokens": as elsewhere; by the prompt alone: "sequence", options' scores, as c-BTM; "logits", as X-ELM.
    task_mixing: str = "tokens"
    task_temperature: float | None = None  # of the router; None: router.temperature; c-BTM and X-ELM: 1


def recorded_evaluation(config: EvaluationConfig) -> dict[str, Any]:
    """The settings as recipes and reports have them: without further models they never said so."""
    settings = asdict(config)
    return settings if config.models else {key: settings[key] for key in settings if key != "models"}


def family_of(task: str) -> str | None:
    """The family of a task such as "xnli_de"; None where there is no such task."""
    if task in TASKS:
        return task
    family, _, language = task.rpartition("_")
    return family if language and TASKS.get(family) else None


def task_problems(tasks: Sequence[str], config: EvaluationConfig) -> list[str]:
    """Why these tasks cannot be run, as far as settings say."""
    problems = []
    if unknown := [task for task in tasks if family_of(task) is None]:
        named = [f"{family}[_<language>]" if by_lang else family for family, by_lang in TASKS.items()]
        problems.append(f"tasks={unknown} are not known; use some of {', '.join(named)}")
    if tasks and config.task_data is None:
        problems.append(
            "evaluation.task_data is not set, and tasks need data; give a folder of <task>/test.jsonl, or "
            "evaluation.task_data=sample for the few rows that come with the package"
        )
    if not config.fewshot_seeds:
        problems.append("evaluation.fewshot_seeds=[] draws no demonstrations; use for example [42]")
    return problems


def rule_problems(config: EvaluationConfig, *, can_route: bool) -> list[str]:
    """Why these rules cannot be measured; nothing when they can, or are left to the program.

    Args:
        config: rules and top-k wanted.
        can_route: whether the clusterer places texts (tf-idf).
    """
    problems = []
    if not config.top_k or not all(top_k is None or top_k >= 1 for top_k in config.top_k):
        problems.append(
            f"evaluation.top_k={config.top_k} keeps no expert; use numbers from 1 up, and null for all"
        )
    if not all(0 < temperature < math.inf for temperature in config.temperatures):
        problems.append(f"evaluation.temperatures={config.temperatures} must be above 0")
    if config.subsets == [] or config.clusters == []:
        problems.append(
            "evaluation.subsets=[] and evaluation.clusters=[] leave no document; use null for all"
        )
    if len(set(config.subsets or [])) < len(config.subsets or []):
        problems.append(f"evaluation.subsets={config.subsets} has a subset twice; name each once")
    if config.rules is None:
        return problems
    if not config.rules or not set(config.rules) <= set(RULES):
        problems.append(f"evaluation.rules={config.rules} must be some of {list(RULES)}")
    unroutable = [rule for rule in config.rules if rule in TEXT_RULES]
    if unroutable and not can_route:
        problems.append(
            f"evaluation.rules={unroutable} route by text, which needs clustering.method=tfidf; "
            "cluster that way, or use 'top1_language', 'bayes', 'uniform' or 'random'"
        )
    return problems
