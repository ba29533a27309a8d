"""Experts in rounds and beside a finished set, from text to a report, at the smallest size."""

import json

import pytest

from tests.helpers.commands import SMALL, run, run_well
from tests.helpers.weights import read_weights
from xelm_nemo.corpus.udhr import documents

pytestmark = pytest.mark.slow

SIZES = [word for word in SMALL if not word.startswith(("+experiment", "model=", "dense.", "evaluation."))]
PLAIN = ["model=tiny", "precision=fp32", "evaluation.max_docs=6", "evaluation.bootstrap_samples=20"]


def write_corpus(folder, *languages):
    rows = [row for row in documents() if row["lang"] in languages]
    for split, some in {"train": rows[::2], "valid": rows[1::4], "test": rows[3::4]}.items():
        path = folder / split / "00000/text.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in some))
    return f"corpus.path={folder}"


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A root for two languages, and an expert for each: the words of the run, and its folder."""
    folder = tmp_path_factory.mktemp("rounds")
    words = [*PLAIN, *SIZES, "rounds=hmr", "clustering.languages=[en,ja]", "finish_with=[evaluate]"]
    words += [write_corpus(folder / "text", "en", "ja"), f"output={folder / 'tree'}"]
    run_well("train", *words)
    return words, folder / "tree"


def facts(folder):
    return json.loads((folder / "model/model.json").read_text())


def written(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def test_every_expert_is_branched_from_its_parent(tree):
    _, folder = tree
    root = folder / "experts/round0/expert0"
    assert facts(root)["parent"] == str(folder / "seed_model/model")
    for leaf in (folder / "experts/round1/expert0", folder / "experts/round1/expert1"):
        assert facts(leaf)["parent"] == str(root / "model")
    assert json.loads((folder / "evaluation/result.json").read_text())["training_tokens"] == {
        f"expert{k}": (4 * 4 + 4 * 8 // 2) * 32 for k in (0, 1)
    }


def test_status_shows_all_rounds(tree):
    _, folder = tree
    shown = json.loads(run_well("status", f"output={folder}", "json=true"))
    assert [(row["model"], row["state"]) for row in shown] == [
        (name, "finished") for name in ("seed_model", "round0-expert0", "expert0", "expert1")
    ]


def test_lost_expert_is_trained_again_with_the_same_bits_and_no_other(tree):
    words, folder = tree
    before, leaf = written(folder / "experts"), folder / "experts/round1/expert1/model"
    weights = read_weights(leaf)
    leaf.rename(folder / "aside")
    run_well("retry", f"output={folder}")
    (folder / "aside").rename(folder.parent / "aside")
    changed = {path for path, content in written(folder / "experts").items() if before.get(path) != content}
    assert all(path.is_relative_to(leaf.parent) or path.name == "set.json" for path in changed)
    assert all((read_weights(leaf)[name] == tensor).all() for name, tensor in weights.items())
    run_well("train", *words)


@pytest.fixture(scope="module")
def grown(tree):
    """Spanish is added to the tree's two experts: what was in the old folder before, and the new one."""
    _, base = tree
    before, folder = written(base), base.parent / "grown"
    sizes = [word for word in SIZES if not word.startswith(("clustering", "seed_model", "tokenizer"))]
    words = [*PLAIN, *sizes, "clustering=typology", "rounds.kind=adapt", f"rounds.base={base}"]
    words += ["clustering.num_clusters=3", "rounds.languages=[es]", "finish_with=[evaluate,export]"]
    words += [write_corpus(base.parent / "more", "en", "ja", "es"), f"output={folder}"]
    return before, folder, words, run_well("train", *words)


def test_newcomer_begins_from_its_donor_and_the_old_files_stay_as_they_are(tree, grown):
    (_, base), (before, folder, *_) = tree, grown
    assert written(base) == before
    assert facts(folder / "experts/round0/expert2")["parent"] == str(base / "experts/round1/expert0/model")
    assert [path.name for path in sorted((folder / "experts/round0").glob("*/"))] == ["expert2"]


def test_grown_set_is_listed_evaluated_and_exported_as_one(grown):
    _, folder, words, _ = grown
    experts = json.loads((folder / "experts/round0/set.json").read_text())["experts"]
    assert [(row["name"], row["languages"]) for row in experts] == [
        ("expert0", ["en"]), ("expert1", ["ja"]), ("expert2", ["es"]),
    ]  # fmt: skip
    found = json.loads((folder / "evaluation/result.json").read_text())
    names = {model["name"] for model in found["models"]}
    assert {"expert0", "expert1", "expert2", "top-1 by language"} <= names
    scores = {model["name"]: model["by_language"]["es"]["nats"] for model in found["models"]}
    assert scores["top-1 by language"] == pytest.approx(scores["expert2"])
    assert {path.name for path in (folder / "export").iterdir()} == {"expert0", "expert1", "expert2"}
    code, screen, _ = run("train", *words, "dry_run=true")
    assert code == 0 and "stays as it is" in screen
