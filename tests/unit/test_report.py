import io

import pytest
from rich.console import Console

from tests.helpers.evaluations import result
from xelm_nemo.evaluation.report import print_report, report_markdown, verdict, write_report


def lines_with(text, start):
    return [line for line in text.splitlines() if line.startswith(start)]


@pytest.mark.parametrize(
    "ensemble, said",
    [(20.0, "20.0 % lower"), (27.5, "10.0 % higher"), (25.0, "the same")],
)
def test_the_verdict_says_which_way_it_went(ensemble, said):
    assert verdict(result(ensemble)).startswith(
        f"ensemble {ensemble:.2f} against dense 25.00: {said} perplexity on equal training tokens"
    )


def test_the_verdict_gives_the_interval():
    assert verdict(result()).endswith("(95 % interval of the ratio 0.790 to 0.820).")


def test_the_verdict_does_not_claim_equal_tokens_that_are_not():
    assert "on 2,000,000 training tokens against 3,000,000" in verdict(result(has_equal_tokens=False))


def test_without_a_dense_model_the_verdict_speaks_of_the_best_expert():
    assert "20.00 against the best expert, expert0, 30.00: 33.3 % lower perplexity (95 %" in verdict(
        result(dense=None)
    )


def test_the_best_model_of_each_language_is_bold():
    report = report_markdown(result())
    assert lines_with(report, "| de |")[0] == "| de | 500 | 24.00 | **17.00** |"
    assert lines_with(report, "| en |")[0] == "| en | 500 | **26.50** | 27.00 |"
    assert lines_with(report, "| en |")[1] == "| en | 50.00 | **26.00** |"


def test_the_overall_table_gives_interval_bits_and_training_tokens():
    [row, *_] = lines_with(report_markdown(result()), "| dense")
    assert row == "| dense | 25.00 | 23.50 to 26.50 | 1.1610 | 2,000,000 |"


def test_clusters_and_settings_are_reported():
    report = report_markdown(result())
    assert "## Perplexity by cluster" in report
    assert "| `router.rule` | `upstream` |" in report
    assert "| documents | 22, 3 of them cut to the context |" in report


def test_every_row_of_a_table_has_as_many_cells_as_its_header():
    width = None
    for line in report_markdown(result()).splitlines():
        cells = line.count("|")
        assert width in (None, 0, cells) or cells == 0, line
        width = cells


def test_the_report_shows_the_plots_beside_it(tmp_path):
    write_report(tmp_path / "report.md", [result()], plots=[[tmp_path / "plots/loss_curves.png"]])
    assert "![loss curves](plots/loss_curves.png)" in (tmp_path / "report.md").read_text()


def test_the_terminal_shows_the_overall_table_and_the_verdict():
    screen = io.StringIO()
    print_report(result(), Console(file=screen, width=100))
    shown = screen.getvalue()
    assert all(name in shown for name in ("expert0", "dense", "ensemble", "23.50 - 26.50"))
    assert "20.0 % lower perplexity" in shown
