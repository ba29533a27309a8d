"""What is OPT's own: its position table, its names, its configurations, its sizes."""

import pytest
import torch

from tests.helpers.random_opt import (
    LIKE_350M,
    PRE_NORM,
    position_rows,
    random_opt,
    without_head,
    write_opt_tokenizer,
)
from tests.helpers.random_xglm import change_config, change_weights, logits_of, random_tokens
from xelm_nemo import parallel
from xelm_nemo.artifacts import Recipe
from xelm_nemo.checkpoint import store
from xelm_nemo.checkpoint.architectures import ARCHITECTURES, read_shape
from xelm_nemo.checkpoint.facts import ModelFacts, load_facts
from xelm_nemo.checkpoint.hf import export_hf, import_hf
from xelm_nemo.config.compose import compose
from xelm_nemo.corpus.tokenizer import encode_document, load_tokenizer
from xelm_nemo.errors import CheckpointError, ConfigError
from xelm_nemo.model.config import ModelConfig, ParallelConfig

RECIPE = Recipe("model", {})
TEXTS = ["All human beings are born free and equal in dignity and rights.", "Tous les êtres humains"]
FC1 = "model.decoder.layers.1.fc1.weight"


@pytest.fixture
def folder(tmp_path):
    """A Hugging Face folder to change: norms behind, narrow embeddings."""
    random_opt(**LIKE_350M).save_pretrained(tmp_path / "original")
    return tmp_path / "original"


@pytest.fixture
def tokenizer(tmp_path):
    return write_opt_tokenizer(TEXTS, tmp_path / "tokenizer")


def imported_logits(folder, tokens):
    with parallel.model_parallel(), torch.no_grad():
        return store.load_model(folder, ParallelConfig()).eval().logits(tokens)


def test_two_rows_of_the_position_table_that_no_token_uses_are_kept(folder, tokenizer, tmp_path):
    import_hf(folder, tmp_path / "imported", RECIPE)
    export_hf(tmp_path / "imported", tmp_path / "exported", tokenizer=tokenizer)
    before, after = position_rows(folder), position_rows(tmp_path / "exported")
    assert after.shape == (66, 32)
    assert after[:2].any()
    assert torch.equal(after, before)


def test_first_token_is_at_row_two(folder, tmp_path):
    tokens = random_tokens(8)
    import_hf(folder, tmp_path / "imported", RECIPE)

    def blank_unused_rows(tensors):
        tensors["model.decoder.embed_positions.weight"][[0, 1, *range(10, 66)]] = 0
        return tensors

    change_weights(folder, blank_unused_rows)
    import_hf(folder, tmp_path / "blanked", RECIPE)
    logits = [imported_logits(tmp_path / name, tokens) for name in ("imported", "blanked")]
    assert torch.equal(*logits)


def test_weights_saved_without_their_common_prefix_are_read(tmp_path):
    model, tokens = random_opt(**PRE_NORM), random_tokens(9)
    without_head(model, tmp_path / "original")
    import_hf(tmp_path / "original", tmp_path / "imported", RECIPE)
    found, expected = imported_logits(tmp_path / "imported", tokens), logits_of(model, tokens)
    assert (found - expected).abs().max() <= 1e-4


def test_settings_come_from_the_config_alone(folder, tmp_path):
    change_config(folder, dropout=0.25, attention_dropout=0.125, init_std=0.006)
    renamed = folder.rename(tmp_path / "opt-1.3b")
    import_hf(renamed, tmp_path / "imported", RECIPE)
    assert load_facts(tmp_path / "imported").shape == ModelConfig(
        architecture="opt",
        num_layers=2,
        hidden_size=32,
        ffn_hidden_size=128,
        num_attention_heads=2,
        activation="relu",
        max_position_embeddings=64,
        init_method_std=0.006,
        hidden_dropout=0.25,
        attention_dropout=0.125,
        post_layernorm=True,
        word_embed_proj_dim=16,
    )


def test_embeddings_as_wide_as_layers_need_no_projection(folder):
    change_config(folder, word_embed_proj_dim=32)
    assert read_shape(folder).word_embed_proj_dim is None
    change_config(folder, word_embed_proj_dim=None)
    assert read_shape(folder).word_embed_proj_dim is None


def test_model_card_says_opt(folder, tokenizer, tmp_path):
    import_hf(folder, tmp_path / "imported", RECIPE)
    export_hf(tmp_path / "imported", tmp_path / "exported", tokenizer=tokenizer)
    card = (tmp_path / "exported/README.md").read_text()
    assert "An OPT language model" in card and "- opt" in card and "xglm" not in card.lower()


def test_document_begins_and_ends_with_one_end_token(tokenizer):
    words = load_tokenizer(tokenizer)
    assert words(TEXTS[0]).input_ids[0] == 2, "its own template adds one too"
    ids = encode_document(words, TEXTS[0])
    assert (ids[0], ids[-1], ids.count(2)) == (2, 2, 2)


@pytest.mark.parametrize(
    "setting, part",
    [
        ({"enable_bias": False}, "enable_bias=False is not supported, only True"),
        ({"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine=False"),
        ({"_remove_final_layer_norm": True}, "_remove_final_layer_norm=True"),
        ({"layerdrop": 0.1}, "layerdrop=0.1"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False"),
        ({"activation_function": "gelu_new"}, "activation_function='gelu_new'"),
        ({"do_layer_norm_before": "yes"}, "do_layer_norm_before='yes' is neither true nor false"),
        ({"word_embed_proj_dim": 0}, "word_embed_proj_dim=0 is not a positive whole number"),
        ({"hidden_size": None}, "hidden_size=None"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_setting_that_the_model_does_not_compute_with_is_named(folder, tmp_path, setting, part):
    change_config(folder, **setting)
    with pytest.raises(CheckpointError) as caught:
        import_hf(folder, tmp_path / "out/model", RECIPE)
    assert "config.json" in str(caught.value) and part in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "setting, parts",
    [
        (
            {"do_layer_norm_before": True},
            ["missing: model.decoder.final_layer_norm.bias, model.decoder.final_layer_norm.weight"],
        ),
        ({"word_embed_proj_dim": None}, ["unknown: model.decoder.project_in.weight"]),
        (
            {"word_embed_proj_dim": 24},
            ["embed_tokens.weight has shape [300, 16], expected [300, 24]", "project_in.weight has shape"],
        ),
        ({"max_position_embeddings": 62}, ["embed_positions.weight has shape [66, 32], expected [64, 32]"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_weights_of_another_shape_are_named(folder, tmp_path, setting, parts):
    change_config(folder, **setting)
    with pytest.raises(CheckpointError) as caught:
        import_hf(folder, tmp_path / "out/model", RECIPE)
    for part in parts:
        assert part in str(caught.value)
    assert not any((tmp_path / "out").glob("*"))


def test_weight_that_is_no_number_is_named(folder, tmp_path):
    def spoil(tensors):
        tensors[FC1][-1, -1] = torch.nan
        return tensors

    change_weights(folder, spoil)
    with pytest.raises(CheckpointError, match=f"model.safetensors: {FC1} holds a number that is not finite"):
        import_hf(folder, tmp_path / "model", RECIPE)


@pytest.mark.parametrize("setting", ["post_layernorm=true", "word_embed_proj_dim=16"])
def test_xglm_has_no_form_of_opts_own(setting):
    with pytest.raises(
        ConfigError, match=rf"model\.{setting.split('=')[0]}=\w+ needs model.architecture=opt"
    ):
        compose([f"model.{setting}"])


def test_unknown_architecture_is_refused():
    with pytest.raises(ConfigError, match=r"model\.architecture='gpt2' is not known"):
        compose(["model.architecture=gpt2"])


# Weights of the published checkpoints, the tied head counted once; those of OPT-66B by its published sizes.
PUBLISHED = {
    "xglm_564m": 564_463_616,
    "xglm_1_7b": 1_732_907_008,
    "xglm_2_9b": 2_941_505_536,
    "xglm_4_5b": 4_552_511_488,
    "xglm_7_5b": 7_492_771_840,
    "opt_125m": 125_239_296,
    "opt_350m": 331_196_416,
    "opt_1_3b": 1_315_758_080,
    "opt_2_7b": 2_651_596_800,
    "opt_6_7b": 6_658_473_984,
    "opt_13b": 12_853_473_280,
    "opt_30b": 29_974_540_288,
    "opt_66b": 65_719_701_504,
}
VOCAB_SIZES = {"xglm": 256_008, "opt": 50_272}


@pytest.mark.parametrize("name", PUBLISHED)
def test_configured_model_has_as_many_weights_as_the_published_one(name):
    shape = compose([f"model={name}"]).model
    facts = ModelFacts(shape, VOCAB_SIZES[shape.architecture], dtype="bf16", tokenizer="none")
    assert num_weights(ARCHITECTURES[shape.architecture].write_config(facts)) == PUBLISHED[name]


def num_weights(config):
    """Of the model that transformers builds, without any memory for it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).num_parameters()
