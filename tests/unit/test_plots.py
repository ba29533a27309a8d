import json

import pytest

from tests.helpers.evaluations import result
from xelm_nemo.errors import ArtifactError
from xelm_nemo.evaluation.plots import cluster_heat_map, loss_curves, perplexity_bars, write_plots


def write_metrics(folder, name, offset=0.0):
    path = folder / f"{name}.jsonl"
    rows = [{"iteration": i, "loss": 5 + offset - i / 10} for i in range(10)]
    rows.append({"iteration": 9, "valid_loss": 4.5 + offset})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def metrics(tmp_path):
    return {name: write_metrics(tmp_path, name, offset) for offset, name in enumerate(["expert0", "dense"])}


def test_three_pictures_are_written(tmp_path, metrics):
    paths = write_plots(tmp_path / "plots", result(), metrics=metrics)
    assert [path.name for path in paths] == [
        "perplexity_by_language.png",
        "languages_by_cluster.png",
        "loss_curves.png",
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_the_same_result_gives_the_same_bytes(tmp_path, metrics):
    first = write_plots(tmp_path / "one", result(), metrics=metrics)
    second = write_plots(tmp_path / "two", result(), metrics=metrics)
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_without_metrics_no_loss_curve_is_drawn(tmp_path):
    assert len(write_plots(tmp_path, result(), metrics={})) == 2


def test_bars_are_as_high_as_the_perplexities():
    [axes] = perplexity_bars(result()).axes
    heights = [[round(bar.get_height(), 3) for bar in group] for group in axes.containers]
    both = round((18 * 26) ** 0.5, 3)  # the languages have equal tokens
    assert heights == [[25, 24, 26.5], [20, 17, 27], [both, 18, 26]]  # dense, ensemble, best expert
    assert [text.get_text() for text in axes.texts] == ["-20 %", "-29 %", "+2 %"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["overall", "de", "en"]


def test_the_heat_map_shows_shares_with_languages_of_a_cluster_together():
    axes = cluster_heat_map({"en": {1: 4}, "de": {0: 9, 1: 1}, "ru": {1: 3, 0: 1}}).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["de", "en", "ru"]
    assert axes.images[0].get_array().tolist() == [[0.9, 0.1], [0, 1], [0.25, 0.75]]


def test_loss_curves_have_a_line_and_dots_for_each_model(metrics):
    [axes] = loss_curves(metrics).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["expert0", "dense"]
    assert [len(line.get_xdata()) for line in axes.lines] == [10, 1, 10, 1]


def test_many_models_get_different_colours(tmp_path):
    metrics = {f"expert{k}": write_metrics(tmp_path, f"expert{k}") for k in range(16)}
    [axes] = loss_curves(metrics).axes
    assert len({line.get_color() for line in axes.lines}) == 16


def test_metrics_that_are_missing_are_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"metrics\.jsonl is missing"):
        loss_curves({"expert0": tmp_path / "metrics.jsonl"})
