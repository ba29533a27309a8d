"""`branch` from a metaseq checkpoint: its sizes count, its tokenizer comes from elsewhere."""

import json
import shutil

import pytest
import torch

from tests.helpers.commands import SMALL, run_well
from tests.helpers.metaseq_files import write_consolidated, write_parts
from tests.helpers.random_opt import LIKE_350M, random_opt, write_opt_tokenizer
from xelm_nemo import command
from xelm_nemo.stages import pipeline


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return write_opt_tokenizer(["All human beings are born free."], tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return random_opt(**LIKE_350M)


def arguments(seed, folder, *more):
    source = ["seed_model.source=metaseq", f"seed_model.path={seed}", "seed_model.train_iters=0"]
    return [*SMALL, *source, f"output={folder}", *more]


def here(capsys, verb, *words):
    """Exit code, standard output and standard error of a command run in this process."""
    code = command.run(lambda: pipeline.main(verb, list(words)))
    return code, *capsys.readouterr()


def test_parts_of_an_opt_become_the_seed_model(model, words, tmp_path, capsys):
    seed = write_parts(model, tmp_path / "parts", 2)
    setting = arguments(seed, tmp_path / "run", f"tokenizer.path={words}")
    run_well("branch", *setting)
    facts = json.loads((tmp_path / "run/seed_model/model/model.json").read_text())
    shape = facts["shape"]
    assert (shape["architecture"], shape["hidden_size"], shape["word_embed_proj_dim"]) == ("opt", 32, 16)
    assert (facts["vocab_size"], facts["tokenizer"], facts["parent"]) == (300, str(words), str(seed))
    code, screen, _ = here(capsys, "branch", *setting, "dry_run=true")
    assert code == 0 and "up to date" in screen and "to do" not in screen
    (seed / "checkpoint_last-model_part-1.pt").touch()
    code, screen, _ = here(capsys, "branch", *setting, "dry_run=true")
    assert code == 0 and "to do" in screen


def test_tokenizer_has_to_be_given(model, tmp_path, capsys):
    seed = write_consolidated(model, tmp_path / "consolidated.pt")
    code, _, error = here(capsys, "branch", *arguments(seed, tmp_path / "run"))
    assert code == 2 and error.count("\n") == 1
    assert "tokenizer.path is not set, and a metaseq checkpoint brings no tokenizer; give the" in error
    assert not (tmp_path / "run").exists()


def test_path_has_to_be_given(words, tmp_path, capsys):
    settings = ["seed_model.source=metaseq", f"tokenizer.path={words}", f"output={tmp_path / 'run'}"]
    code, _, error = here(capsys, "branch", *SMALL, *settings)
    assert code == 2 and "seed_model.path is not set; give a consolidated .pt file" in error


@pytest.mark.parametrize("place", ["no/such.pt", "facebook/opt-1.3b", "words"])
def test_path_without_a_checkpoint_is_named_before_anything_is_written(words, tmp_path, capsys, place):
    seed = shutil.copytree(words, tmp_path / "words") if place == "words" else place
    said = arguments(seed, tmp_path / "run", f"tokenizer.path={words}")
    code, _, error = here(capsys, "branch", *said)
    assert code == 2 and f"seed_model.path='{seed}' is no checkpoint; give a consolidated .pt file" in error
    assert not (tmp_path / "run").exists()


def test_what_the_seed_model_cannot_do_is_said_before_anything_is_written(model, words, tmp_path, capsys):
    seed = write_consolidated(model, tmp_path / "consolidated.pt")
    wide = ["model.max_position_embeddings=128", "training.seq_length=100"]
    code, _, error = here(
        capsys, "branch", *arguments(seed, tmp_path / "run", f"tokenizer.path={words}", *wide)
    )
    assert code == 2 and "training.seq_length=100 is longer than model.max_position_embeddings=64" in error
    assert not (tmp_path / "run").exists()
