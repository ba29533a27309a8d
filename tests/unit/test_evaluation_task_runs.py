"""Tasks run through lm-evaluation-harness on the package's sample, offline."""

import dataclasses

import pytest

from tests.helpers.exported import export_two
from xelm_nemo.evaluation.config import TASKS, EvaluationConfig
from xelm_nemo.evaluation.tasks import data_folder, find_tasks

pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install 'xelm_nemo[eval]'")

from lm_eval.tasks import TaskManager

from xelm_nemo.evaluation import task_runs
from xelm_nemo.evaluation.harness import XelmLM
from xelm_nemo.evaluation.task_runs import TaskModel, run_tasks

CONFIG = EvaluationConfig(task_data="sample")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return export_two(tmp_path_factory.mktemp("exported"))


def sample(*names, num_fewshot=0):
    return find_tasks(names, data_folder("sample"), num_fewshot=num_fewshot, demo_lang=None)


def first_questions(tmp_path):
    """Each sample task's first question as the harness puts it: prompt, choices, and which is right."""
    tasks = sample(*TASKS)
    loaded = TaskManager(include_defaults=False).load([task.config(tmp_path) for task in tasks])["tasks"]
    found = {}
    for name, task in loaded.items():
        row = task.test_docs()[0]
        right = task.doc_to_choice(row)[task.doc_to_target(row)]
        found[name] = (task.doc_to_text(row), right, len(task.doc_to_choice(row)))
    return found


def test_questions_are_put_as_the_original_programs_put_them(tmp_path):
    found = first_questions(tmp_path)
    assert found["xnli_en"] == (
        "The school opens at eight every morning., right?",
        "Yes, The school is open in the morning.",
        3,
    )
    assert found["xnli_de"][0].endswith(", right?") and found["xnli_de"][1].startswith("Yes, ")
    story = "Ada planted beans in spring. She watered them every day. In June the plants were tall. In July"
    assert found["xstorycloze_en"] == (f"{story} they carried pods.", "Ada cooked the beans for dinner.", 2)
    assert found["word_translation_de"] == ("The word 'house' in German is:", "Haus", 4)
    assert found["ag_news"] == (
        "The home team won the final by three goals. The topic is",
        "Sports",
        4,
    )
    assert found["glue-sst2"] == ("a warm and funny film It is", "positive", 2)


def test_accuracy_is_the_share_of_right_answers(root, tmp_path):
    (task,) = sample("word_translation_fr")
    model = TaskModel("ensemble", root / "set", "weights")
    scores = {score.metric: score for score in run_tasks([task], [model], CONFIG, tmp_path)}
    lm = XelmLM(root / "set")
    right = 0
    loaded = TaskManager(include_defaults=False).load([task.config(tmp_path)])["tasks"][task.name]
    for row in loaded.test_docs():
        pairs = [lm._encode_pair(loaded.doc_to_text(row), f" {choice}") for choice in row["options"]]
        nats = [nats for nats, _ in lm._loglikelihood_tokens([(None, *pair) for pair in pairs])]
        right += row["options"][max(range(4), key=nats.__getitem__)] == row["output"]
    assert scores["acc"].by_seed == [pytest.approx(right / 3)]
    assert (scores["acc"].num_examples, set(scores)) == (3, {"acc", "acc_norm"})


def test_each_seed_draws_its_demonstrations(root, tmp_path):
    config = dataclasses.replace(CONFIG, num_fewshot=1, fewshot_seeds=[100, 13], max_docs=2)
    tasks = sample("ag_news", num_fewshot=1)
    (score,) = run_tasks(tasks, [TaskModel("ensemble", root / "set", "weights")], config, tmp_path)
    assert len(score.by_seed) == 2 and score.num_examples == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "ensemble-seed100.json",
        "ensemble-seed13.json",
    ]


def test_what_is_known_is_not_run_again(root, tmp_path, monkeypatch):
    model = TaskModel("ensemble", root / "set", "weights")
    before = run_tasks(sample("xnli_de"), [model], CONFIG, tmp_path)
    asked = []
    run = task_runs._run
    monkeypatch.setattr(
        task_runs, "_run", lambda tasks, *rest: asked.append([t.name for t in tasks]) or run(tasks, *rest)
    )
    both = run_tasks(sample("xnli_de", "xnli_sw"), [model], CONFIG, tmp_path)
    assert both[:2] == before and asked == [["xnli_sw"]]
    run_tasks(sample("xnli_de"), [dataclasses.replace(model, fingerprint="other")], CONFIG, tmp_path)
    assert asked[1:] == [["xnli_de"]]
