"""The pipeline from a Hugging Face OPT: its sizes count, the configuration's dropout does."""

import json

import pytest
import torch

from tests.helpers.commands import SMALL, run_well
from tests.helpers.random_opt import LIKE_350M, random_opt, write_opt_tokenizer
from xelm_nemo import command
from xelm_nemo.stages import pipeline


@pytest.fixture(scope="module")
def seed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("opt")
    torch.manual_seed(0)
    random_opt(**LIKE_350M).save_pretrained(folder)
    write_opt_tokenizer(["All human beings are born free and equal in dignity and rights."], folder)
    return folder


def arguments(seed, folder):
    # model.* of SMALL are the sizes of another model.
    source = ["seed_model=hf", f"seed_model.path={seed}", "seed_model.train_iters=0"]
    return [*SMALL, *source, "dense.enabled=false", f"output={folder}"]


@pytest.fixture(scope="module")
def finished(seed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "small"
    run_well("train", *arguments(seed, folder))
    return folder


def here(capsys, *words):
    """Exit code, standard output and standard error of a command run in this process."""
    code = command.run(lambda: pipeline.main("train", list(words)))
    return code, *capsys.readouterr()


def test_expert_has_the_sizes_of_the_seed_model_and_the_dropout_of_the_configuration(finished):
    facts = json.loads((finished / "experts/round0/expert1/model/model.json").read_text())
    shape = facts["shape"]
    assert (shape["architecture"], shape["post_layernorm"], shape["word_embed_proj_dim"]) == ("opt", True, 16)
    assert (shape["hidden_size"], shape["num_layers"], shape["max_position_embeddings"]) == (32, 2, 64)
    assert (shape["hidden_dropout"], shape["attention_dropout"], facts["vocab_size"]) == (0.1, 0.1, 300)


def test_exported_experts_are_opts_that_have_learned(finished, seed):
    from transformers import AutoModelForCausalLM, AutoTokenizer, OPTForCausalLM

    ids = AutoTokenizer.from_pretrained(finished / "export/expert1")("human rights", return_tensors="pt")
    folders = [seed, *(finished / "export" / name for name in ("expert0", "expert1"))]
    models = [AutoModelForCausalLM.from_pretrained(folder).eval() for folder in folders]
    assert {type(model) for model in models} == {OPTForCausalLM}
    with torch.no_grad():
        seed_logits, first, second = (model(**ids).logits for model in models)
    assert first.shape[-1] == 300
    assert not torch.equal(first, seed_logits)
    assert not torch.equal(first, second)


def test_evaluation_scores_the_ensemble(finished):
    result = json.loads((finished / "evaluation/result.json").read_text())
    assert 1 < result["result_ppl"] < 100_000


def test_same_command_finds_everything_up_to_date(finished, seed, capsys):
    code, screen, _ = here(capsys, *arguments(seed, finished), "dry_run=true")
    assert code == 0
    assert "up to date" in screen and "to do" not in screen


@pytest.mark.parametrize(
    "setting, said",
    [
        (
            "training.seq_length=100",
            "training.seq_length=100 is longer than model.max_position_embeddings=64",
        ),
        ("parallel.tensor_model_parallel_size=4", "does not divide model.num_attention_heads=2"),
    ],
)
def test_what_the_seed_model_cannot_do_is_said_before_anything_is_written(
    seed, capsys, tmp_path, setting, said
):
    wide = ["model.max_position_embeddings=128", "model.num_attention_heads=4"]
    code, _, error = here(capsys, *arguments(seed, tmp_path / "run"), *wide, setting)
    assert code == 2 and said in error
    assert not (tmp_path / "run").exists()


def test_folder_that_is_no_checkpoint_is_named_before_anything_is_written(capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    for further in ([], [f"+evaluation.models.other={tmp_path / 'empty'}"]):
        code, _, error = here(capsys, *arguments(tmp_path / "empty", tmp_path / "run"), *further)
        assert code == 2 and "empty' has no config.json that can be read" in error
        assert not (tmp_path / "run").exists()
