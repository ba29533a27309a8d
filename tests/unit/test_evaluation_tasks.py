"""Tasks and their data, found and checked; what they gave, in tables. None of it needs lm_eval."""

import io
import json
import shutil
import sys

import pytest
from rich.console import Console

from tests.helpers.evaluations import result
from xelm_nemo.config.compose import compose
from xelm_nemo.errors import ConfigError, CorpusError
from xelm_nemo.evaluation.config import TASKS, family_of
from xelm_nemo.evaluation.report import write_report
from xelm_nemo.evaluation.result import read_results, read_task_results, write_results
from xelm_nemo.evaluation.task_scores import TaskResults, TaskScore, print_tasks, task_rows
from xelm_nemo.evaluation.tasks import data_folder, find_tasks
from xelm_nemo.stages import pipeline
from xelm_nemo.stages import tasks as stages_tasks
from xelm_nemo.stages.plan import check_places
from xelm_nemo.stages.run import Run

SAMPLE = data_folder("sample")
SETTINGS = {
    "num_fewshot": 8,
    "fewshot_seeds": [13, 21],
    "mixing": "Experts are weighed by the router.",
    "is_sample": True,
    "lm_eval": "0.4.13",
}


def find(*names, folder=SAMPLE, num_fewshot=0, demo_lang=None):
    return find_tasks(names, folder, num_fewshot=num_fewshot, demo_lang=demo_lang)


def names_of(tasks):
    return [task.name for task in tasks]


def found(*scores):
    return TaskResults(SETTINGS, [TaskScore(*score) for score in scores])


SCORES = found(
    ("xnli_de", "dense", "acc", [0.25, 0.35], 0.02, 50),
    ("xnli_en", "dense", "acc", [0.5, 0.5], 0.03, 40),
    ("xnli_de", "ensemble", "acc", [0.5, 0.7], 0.02, 50),
    ("xnli_en", "ensemble", "acc", [0.75, 0.75], None, 40),
)


def test_every_known_task_has_a_sample_with_demonstrations():
    tasks = find(*TASKS, num_fewshot=2)
    assert {family_of(name) for name in names_of(tasks)} == set(TASKS)
    assert all(set(task.files) == {"test", "train"} for task in tasks)
    languages = [names_of(find(family)) for family, by_lang in TASKS.items() if by_lang]
    assert all(len(members) > 1 for members in languages)


def test_a_family_is_run_in_the_languages_that_there_is_data_for():
    assert names_of(find("xnli")) == ["xnli_de", "xnli_en", "xnli_sw"]
    assert names_of(find("xnli_sw", "xnli", "ag_news")) == ["xnli_sw", "xnli_de", "xnli_en", "ag_news"]


def test_demonstrations_may_come_from_another_language():
    (task,) = find("xnli_sw", num_fewshot=1, demo_lang="en")
    assert task.files["train"] == SAMPLE / "xnli_en/train.jsonl"
    assert task.files["test"] == SAMPLE / "xnli_sw/test.jsonl"
    (task,) = find("ag_news", num_fewshot=1, demo_lang="en")
    assert task.files["train"] == SAMPLE / "ag_news/train.jsonl"


def test_other_data_makes_another_stamp(tmp_path):
    shutil.copytree(SAMPLE / "xnli_de", tmp_path / "xnli_de")
    assert find("xnli_de", folder=tmp_path)[0].stamp() == find("xnli_de")[0].stamp()
    with (tmp_path / "xnli_de/test.jsonl").open("a") as file:
        file.write('{"premise": "a", "hypothesis": "b", "label": 1}\n')
    assert find("xnli_de", folder=tmp_path)[0].stamp() != find("xnli_de")[0].stamp()


@pytest.mark.parametrize(
    "line, said",
    [
        ("{", "xnli_de/test.jsonl:1: this line is no JSON"),
        ("[1]", "this line is no JSON object"),
        ('{"premise": "a", "label": 0}', "the row lacks hypothesis; give it all of"),
        ('{"premise": "a", "hypothesis": "b", "label": 3}', r"label=3 is none of \[0, 1, 2\]"),
        ("", "xnli_de/test.jsonl is empty"),
    ],
)
def test_rows_that_a_task_cannot_use_are_refused(tmp_path, line, said):
    (tmp_path / "xnli_de").mkdir()
    (tmp_path / "xnli_de/test.jsonl").write_text(line)
    with pytest.raises(CorpusError, match=said):
        find("xnli_de", folder=tmp_path)


def test_an_answer_that_is_no_option_is_refused(tmp_path):
    (tmp_path / "ag_news").mkdir()
    row = {"input": "a", "options": ["World", "Sports"], "output": "Weather"}
    (tmp_path / "ag_news/test.jsonl").write_text(json.dumps(row))
    with pytest.raises(CorpusError, match=r"output='Weather' is none of \['World', 'Sports'\]"):
        find("ag_news", folder=tmp_path)


@pytest.mark.parametrize(
    "name, num_fewshot, said",
    [
        ("xnli", 0, r"has no data for xnli; put it into .*xnli_<language>/test.jsonl"),
        ("ag_news", 0, r"has no data for ag_news; put it into .*ag_news/test.jsonl"),
        ("xnli_de", 0, r"xnli_de/test.jsonl is not there; write one JSON object a line, with \['premise'"),
    ],
)
def test_data_that_is_missing_is_asked_for(tmp_path, name, num_fewshot, said):
    with pytest.raises(CorpusError, match=said):
        find(name, folder=tmp_path, num_fewshot=num_fewshot)


def test_more_demonstrations_than_there_are_rows_are_refused():
    with pytest.raises(CorpusError, match=r"train.jsonl has 2 rows, and evaluation.num_fewshot=3; add rows"):
        find("xnli_de", num_fewshot=3)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["tasks=[xnly]"], r"tasks=\['xnly'\] are not known; use some of xnli\[_<language>\], .*, ag_news, "),
        (["tasks=[ag_news_de]"], r"tasks=\['ag_news_de'\] are not known"),
        (
            ["tasks=[xnli]"],
            "evaluation.task_data is not set, and tasks need data; give a folder of <task>/test",
        ),
        (["evaluation.fewshot_seeds=[]"], "fewshot_seeds=.. draws no demonstrations"),
    ],
)
def test_tasks_that_cannot_be_run_are_refused_before_anything_starts(arguments, said):
    with pytest.raises(ConfigError, match=said):
        compose(["+experiment=udhr", *arguments])


TASKS_ASKED_FOR = ["+experiment=udhr", "tasks=[xnli]", "evaluation.task_data=sample"]


def test_tasks_have_the_models_exported_before():
    def stages(verb, *more):
        return [stage.name for stage in pipeline.stages_of(verb, compose([*TASKS_ASKED_FOR, *more]))][5:]

    assert stages("evaluate") == stages("train") == ["export", "evaluate"]
    assert stages("train", "finish_with=[evaluate]") == ["export", "evaluate"]
    assert stages("train", "finish_with=[]") == []
    assert stages("evaluate", "tasks=[]") == ["evaluate"]


def test_without_lm_eval_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    run = Run(compose([*TASKS_ASKED_FOR, f"output={tmp_path}"]))
    with pytest.raises(ConfigError, match=r"tasks need lm_eval, which .* `pip install 'xelm_nemo\[eval\]'`"):
        check_places(run, pipeline.stages_of("evaluate", run.config))


def test_data_that_is_missing_is_asked_for_before_anything_starts(tmp_path):
    run = Run(compose([*TASKS_ASKED_FOR, f"evaluation.task_data={tmp_path}"]))
    with pytest.raises(ConfigError, match="has no data for xnli; put it into"):
        check_places(run, pipeline.stages_of("evaluate", run.config))


def test_rows_are_read_once_while_the_files_stay_as_they_are(tmp_path, monkeypatch):
    shutil.copytree(SAMPLE / "xnli_de", tmp_path / "xnli_de")
    run = Run(compose([*TASKS_ASKED_FOR, f"evaluation.task_data={tmp_path}"]))
    readings = []
    monkeypatch.setattr(
        stages_tasks, "find_tasks", lambda *rest, **how: readings.append(1) or find_tasks(*rest, **how)
    )
    before = stages_tasks.stamps(run)
    stages_tasks.problems(run)
    assert stages_tasks.stamps(run) == before
    assert len(readings) == 1
    with (tmp_path / "xnli_de/test.jsonl").open("a") as file:
        file.write('{"premise": "a", "hypothesis": "b", "label": 1}\n')
    assert stages_tasks.stamps(run) != before and len(readings) == 2


def test_the_table_has_a_column_a_model_and_the_mean_of_a_family():
    header, *rows = task_rows(SCORES)
    assert header == ["task", "examples", "metric", "dense", "ensemble"]
    assert rows == [
        ["xnli_de", "50", "acc", "30.0 ± 2.0", "60.0 ± 2.0"],
        ["xnli_en", "40", "acc", "50.0 ± 3.0", "75.0"],
        ["xnli, mean", "", "acc", "40.0", "67.5"],
    ]


def test_the_report_shows_the_tasks_and_how_they_were_run(tmp_path):
    write_report(tmp_path / "report.md", [result()], plots=[[]], tasks=SCORES)
    report = (tmp_path / "report.md").read_text()
    assert "# Tasks\n\nPer cent; demonstrations: 8, seeds 13, 21." in report
    assert "weighed by the router. lm-evaluation-harness 0.4.13. The data is the package's sample" in report
    assert "| xnli_de | 50 | acc | 30.0 ± 2.0 | 60.0 ± 2.0 |" in report


def test_the_terminal_shows_the_tasks():
    screen = io.StringIO()
    print_tasks(SCORES, Console(file=screen, width=80))
    assert "xnli_de" in screen.getvalue() and "60.0" in screen.getvalue() and "±" not in screen.getvalue()


def test_the_result_file_keeps_its_keys_and_gains_the_tasks(tmp_path):
    path = tmp_path / "result.json"
    write_results(path, [result()])
    before = json.loads(path.read_text())
    assert read_task_results(path) is None
    write_results(path, [result()], SCORES)
    after = json.loads(path.read_text())
    tasks = after.pop("tasks")
    assert after == before and {"dataset", "result_ppl", "result_prior"} <= after.keys()
    assert tasks["scores"][0]["value"] == pytest.approx(0.3)
    assert read_task_results(path) == SCORES and read_results(path) == [result()]
