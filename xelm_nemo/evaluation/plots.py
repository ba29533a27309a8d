"""Pictures of an evaluation, as PNG files: perplexity bars, languages by cluster, loss curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xelm_nemo.errors import ArtifactError
from xelm_nemo.evaluation.result import EvaluationResult, Score
from xelm_nemo.log import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers tell apart.
_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#E69F00", "#009E73", "#999999"
_CYCLE = (_BLUE, _ORANGE, _GREEN, "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
_DPI = 150


def write_plots(
    folder: Path,
    result: EvaluationResult,
    *,
    metrics: Mapping[str, Path],
    documents: Mapping[str, Mapping[int, int]] | None = None,
) -> list[Path]:
    """Draw what there is data for.

    Args:
        folder: where the PNG files go.
        result: the evaluation.
        metrics: model -> its metrics.jsonl.
        documents: language -> cluster -> documents; None takes those evaluated.

    Returns:
        paths of the files: perplexity_by_language.png, languages_by_cluster.png, loss_curves.png.
    """
    folder.mkdir(parents=True, exist_ok=True)
    documents = documents or result.documents
    figures = {
        "perplexity_by_language": perplexity_bars(result) if result.languages else None,
        "languages_by_cluster": cluster_heat_map(documents) if documents else None,
        "loss_curves": loss_curves(metrics) if metrics else None,
    }
    paths = []
    for name, figure in figures.items():
        if figure is not None:
            paths.append(folder / f"{name}.png")
            # Without metadata the bytes depend on the data alone.
            figure.savefig(paths[-1], dpi=_DPI, bbox_inches="tight", metadata={"Software": None})
    return paths


def perplexity_bars(result: EvaluationResult) -> "Figure":
    """Bars of dense model, headline ensemble and the language's best expert, overall and by language."""
    labels = ["overall", *result.languages]
    series = _bar_series(result)
    figure, axes = _subplots(width=max(6.0, 0.55 * len(labels) + 1.5), height=3.6)
    width = 0.8 / len(series)
    # A gap sets the overall group apart from the languages.
    centres = [0.0, *(n + 0.5 for n in range(1, len(labels)))]
    for i, (name, colour, values) in enumerate(series):
        left = [centre + (i - (len(series) - 1) / 2) * width for centre in centres]
        axes.bar(left, values, width, label=name, color=colour)
    _label_changes(axes, centres, series)
    axes.set_xticks(centres, labels)
    axes.set_ylabel("perplexity (lower is better)")
    axes.set_title(
        f"Perplexity by language on {result.dataset}; per cent: {result.headline.name} against dense"
    )
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, ncols=len(series), loc="upper center", bbox_to_anchor=(0.5, -0.1))
    return figure


def cluster_heat_map(documents: Mapping[str, Mapping[int, int]]) -> "Figure":
    """Share of each language's documents in each cluster; languages of one cluster stand together.

    Args:
        documents: language -> cluster -> number of documents.
    """
    clusters = sorted({cluster for row in documents.values() for cluster in row})
    shares = {
        lang: [row.get(cluster, 0) / max(sum(row.values()), 1) for cluster in clusters]
        for lang, row in documents.items()
    }
    order = sorted(shares, key=lambda lang: (shares[lang].index(max(shares[lang])), -max(shares[lang]), lang))
    figure, axes = _subplots(width=0.55 * len(clusters) + 2.4, height=0.3 * len(order) + 1.4)
    image = axes.imshow([shares[lang] for lang in order], cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for y, lang in enumerate(order):
        for x, share in enumerate(shares[lang]):
            if share > 0:
                colour = "white" if share > 0.6 else "black"
                axes.text(x, y, f"{100 * share:.0f}", ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(len(clusters)), [str(cluster) for cluster in clusters])
    axes.set_yticks(range(len(order)), order)
    axes.set_xlabel("cluster")
    axes.set_title("Where each language's\ndocuments go (%)", fontsize=10)
    bar = figure.colorbar(image, ax=axes, ticks=[0, 0.5, 1])
    bar.ax.set_yticklabels(["0", "50", "100 %"])
    return figure


def loss_curves(metrics: Mapping[str, Path]) -> "Figure":
    """Training loss (lines) and validation loss (dots) of every model, the dense one in black.

    Args:
        metrics: model -> its metrics.jsonl, lines of {"iteration", "loss"?, "valid_loss"?}.

    Raises:
        ArtifactError: a file is missing.
    """
    figure, axes = _subplots(width=7.0, height=3.8)
    experts = [name for name in metrics if name != "dense"]
    colours = dict(zip(experts, _colours(len(experts)), strict=True))
    for name, path in metrics.items():
        if not path.is_file():
            raise ArtifactError(f"{path} is missing; run `train` first.")
        rows = read_metrics(path)
        colour = colours.get(name, "black")
        style: dict[str, Any] = {"color": colour, "zorder": 2 if name in colours else 3}
        _plot_points(axes, rows, "loss", label=name, linewidth=1.2 if name in colours else 2.0, **style)
        _plot_points(axes, rows, "valid_loss", linestyle="none", marker="o", markersize=4, **style)
    axes.set_xlabel("iteration")
    axes.set_ylabel("loss (nats per token)")
    axes.set_title("Training loss; dots are validation loss")
    axes.grid(alpha=0.3)
    columns = 1 if len(metrics) <= 12 else 2
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), ncols=columns, fontsize=9)
    return figure


def _bar_series(result: EvaluationResult) -> list[tuple[str, str, list[float]]]:
    """Name, colour, and the perplexity overall and by language of each kind of bar."""
    rows = [("dense", _GREY, model) for model in result.of_kind("dense")]
    rows.append((result.headline.name, _BLUE, result.headline))
    series = [
        (
            name,
            colour,
            [model.overall.perplexity, *(model.by_language[lang].perplexity for lang in result.languages)],
        )
        for name, colour, model in rows
    ]
    experts = result.of_kind("expert")
    best = [
        min((model.by_language[lang] for model in experts), key=lambda score: score.nats)
        for lang in (result.languages if experts else [])
    ]
    if best:  # overall: each language by the expert that knows it best
        nats, tokens = sum(score.nats for score in best), sum(score.num_tokens for score in best)
        overall = Score(nats, tokens, 0).perplexity
        series.append(
            ("best expert of the language", _ORANGE, [overall, *(score.perplexity for score in best)])
        )
    return series


def _label_changes(
    axes: "Axes", centres: Sequence[float], series: Sequence[tuple[str, str, list[float]]]
) -> None:
    """Write above each group by how many per cent the ensemble differs from the dense model."""
    values = {name: row for name, _, row in series}
    dense, ours = values.get("dense"), series[1][2] if "dense" in values else None
    if dense is None or ours is None:
        return
    for i, centre in enumerate(centres):
        top = max(row[i] for _, _, row in series)
        change = round(100 * (ours[i] / dense[i] - 1))
        axes.annotate(
            f"{change:+d} %" if change else "0 %", (centre, top), ha="center", va="bottom", fontsize=8
        )


def _plot_points(axes: "Axes", rows: Sequence[Mapping[str, Any]], key: str, **style: Any) -> None:
    points = [(row["iteration"], row[key]) for row in rows if row.get(key) is not None]
    axes.plot([x for x, _ in points], [y for _, y in points], **style)


def _colours(count: int) -> list[Any]:
    if count <= len(_CYCLE):
        return list(_CYCLE[:count])
    from matplotlib import colormaps

    # The palest end of the map is left out: it vanishes on white.
    return [colormaps["viridis"](0.92 * i / (count - 1)) for i in range(count)]


def _subplots(*, width: float, height: float) -> tuple["Figure", "Axes"]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # A figure of its own, not pyplot's: nothing global to leak, no display to be asked for.
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
