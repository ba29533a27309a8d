"""An evaluation as people read it: report.md, and tables on a terminal."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.table import Table

from xelm_nemo.evaluation.result import EvaluationResult, ModelResult, Score
from xelm_nemo.evaluation.task_scores import TaskResults, task_rows, tasks_note
from xelm_nemo.files import write_atomic

Group = TypeVar("Group", str, int)
_RIGHT, _LEFT = "---:", ":---"


def write_report(
    path: Path,
    results: Sequence[EvaluationResult],
    *,
    plots: Sequence[Sequence[Path]],
    tasks: TaskResults | None = None,
) -> None:
    """Write report.md.

    Args:
        path: the file to write.
        results: what to report, a subset each.
        plots: for each subset the pictures to show at its end; they lie beside the report or below it.
        tasks: what tasks gave, for a section of its own.
    """
    parts = []
    for result, of_subset in zip(results, plots, strict=True):
        parts.append(report_markdown(result))
        parts += [f"![{plot.stem.replace('_', ' ')}]({plot.relative_to(path.parent)})" for plot in of_subset]
    if tasks is not None:
        header, *rows = task_rows(tasks)
        parts += [
            "# Tasks",
            f"{tasks_note(tasks)} ± is the standard error over the examples.",
            _table(header, rows),
        ]
    write_atomic(path, "\n\n".join(parts) + "\n")


def report_markdown(result: EvaluationResult) -> str:
    """The report as Markdown: verdict, overall, by language, by cluster, experts, settings."""
    sections = [
        f"# Evaluation on {result.dataset}",
        verdict(result),
        "## Overall",
        _overall_table(result),
        *_group_sections(result, "language", result.languages, lambda model, lang: model.by_language[lang]),
        *_group_sections(
            result, "cluster", result.clusters, lambda model, cluster: model.by_cluster[cluster]
        ),
        "## Settings",
        _settings_table(result),
    ]
    return "\n\n".join(sections)


def verdict(result: EvaluationResult) -> str:
    """The headline ensemble against its baseline, whichever way it goes; and which experts were not there."""
    missing = ", ".join(result.missing_experts)
    return _comparison(result) + (f" Without {missing}: not trained." if missing else "")


def _comparison(result: EvaluationResult) -> str:
    comparison = result.comparison
    ours, theirs = result.headline.overall, result.model(comparison.baseline)
    if theirs is result.headline:
        return f"{comparison.ensemble} {ours.perplexity:.2f}; nothing else was measured."
    percent = 100 * (1 - comparison.ratio)
    change = f"{abs(percent):.1f} % {'lower' if percent > 0 else 'higher'}"
    if f"{abs(percent):.1f}" == "0.0":
        change = "the same"
    low, high = comparison.interval
    baseline = f"the best expert, {theirs.name}," if theirs.kind == "expert" else theirs.name
    return (
        f"{comparison.ensemble} {ours.perplexity:.2f} against {baseline} {theirs.overall.perplexity:.2f}: "
        f"{change} perplexity{_token_clause(result)} "
        f"(95 % interval of the ratio {low:.3f} to {high:.3f})."
    )


def print_report(result: EvaluationResult, console: Console | None = None) -> None:
    """Show the verdict and the overall table, on standard output unless a console is given."""
    console = console or Console()
    table = Table(title=f"Perplexity on {result.dataset}")
    table.add_column("model")
    for heading in ("perplexity", "95 % interval", "bits per byte"):
        table.add_column(heading, justify="right")
    best = _best([model.overall for model in result.models])
    for model in result.models:
        low, high = model.interval
        row = [
            f"{model.overall.perplexity:.2f}",
            f"{low:.2f} - {high:.2f}",
            f"{model.overall.bits_per_byte:.4f}",
        ]
        table.add_row(model.name, *row, style="bold" if model.overall.nats == best else None)
    console.print(table)
    console.print(verdict(result), highlight=False)


def _token_clause(result: EvaluationResult) -> str:
    comparison, tokens = result.comparison, result.training_tokens
    if comparison.baseline != "dense" or comparison.has_equal_tokens is None:
        return ""
    if comparison.has_equal_tokens:
        return " on equal training tokens"
    of_experts = sum(tokens[model.name] for model in result.of_kind("expert"))
    return f" on {of_experts:,} training tokens against {tokens['dense']:,}"


def _overall_table(result: EvaluationResult) -> str:
    best = _best([model.overall for model in result.models])
    rows = []
    for model in result.models:
        low, high = model.interval
        trained_on = f"{result.training_tokens[model.name]:,}" if model.name in result.training_tokens else ""
        rows.append(
            [
                model.name,
                _cell(model.overall, best),
                f"{low:.2f} to {high:.2f}",
                f"{model.overall.bits_per_byte:.4f}",
                trained_on,
                *_cost_cells(result, model.name),
            ]
        )
    header = ["model", "perplexity", "95 % interval", "bits per byte", "training tokens"]
    return _table([*header, *(["GFLOP a token", "weights, MiB"] if result.costs else [])], rows)


def _cost_cells(result: EvaluationResult, name: str) -> list[str]:
    cost = result.costs.get(name)
    return [f"{cost.flops_per_token / 1e9:.4g}", f"{cost.weight_bytes / 2**20:,.1f}"] if cost else []


def _group_sections(
    result: EvaluationResult,
    label: str,
    groups: Sequence[Group],
    score_of: Callable[[ModelResult, Group], Score],
) -> list[str]:
    if not groups:
        return []
    mixed = [*result.of_kind("dense"), *result.of_kind("other"), *result.of_kind("ensemble")]
    sections = [f"## Perplexity by {label}", _group_table(label, groups, mixed, score_of, tokens=True)]
    if experts := result.of_kind("expert"):
        table = _group_table(label, groups, experts, score_of, tokens=False)
        sections += [f"### Each expert by {label}", table]
    return sections


def _group_table(
    label: str,
    groups: Sequence[Group],
    models: Sequence[ModelResult],
    score_of: Callable[[ModelResult, Group], Score],
    *,
    tokens: bool,
) -> str:
    rows = [_group_row(str(group), [score_of(model, group) for model in models], tokens) for group in groups]
    rows.append(_group_row("overall", [model.overall for model in models], tokens))
    return _table([label, *(["tokens"] if tokens else []), *(model.name for model in models)], rows)


def _group_row(name: str, scores: Sequence[Score], tokens: bool) -> list[str]:
    best = _best(scores)
    count = [f"{scores[0].num_tokens:,}"] if tokens else []
    return [name, *count, *(_cell(score, best) for score in scores)]


def _settings_table(result: EvaluationResult) -> str:
    score = result.headline.overall
    documents = f"{result.num_documents:,}, {result.num_truncated:,} of them cut to the context"
    if result.num_left_out:
        documents += f"; {result.num_left_out:,} more left out, whose source fills it"
    rows = [
        ["documents", documents],
        ["scored tokens", f"{score.num_tokens:,}"],
        ["bytes of text", f"{score.num_bytes:,}"],
    ]
    rows += [[f"`{key}`", f"`{value}`"] for key, value in _flatten("", result.settings)]
    return _table(["setting", "value"], rows, numbers=False)


def _flatten(prefix: str, value: object) -> Iterable[tuple[str, object]]:
    if not isinstance(value, dict):
        yield prefix, value
        return
    for key, inner in value.items():
        yield from _flatten(f"{prefix}.{key}" if prefix else key, inner)


def _best(scores: Sequence[Score]) -> float:
    return min(score.nats for score in scores)


def _cell(score: Score, best: float) -> str:
    number = f"{score.perplexity:.2f}"
    return f"**{number}**" if score.nats == best else number


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = True) -> str:
    rule = [_LEFT, *[_RIGHT if numbers else _LEFT] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))
