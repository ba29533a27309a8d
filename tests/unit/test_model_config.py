"""Shapes: which of them can be, and what is said of them on disk."""

import dataclasses

import pytest

from xelm_nemo.model.config import ModelConfig, padded_vocab_size, recorded_settings, shape_problems

OPT_350M = ModelConfig(architecture="opt", post_layernorm=True, word_embed_proj_dim=512)
# What recipes and model.json held before there was OPT.
OLDEST = {
    "num_layers": 24,
    "hidden_size": 2048,
    "ffn_hidden_size": 8192,
    "num_attention_heads": 16,
    "activation": "gelu",
    "max_position_embeddings": 2048,
    "layernorm_epsilon": 1e-5,
    "init_method_std": 0.02,
    "hidden_dropout": 0.1,
    "attention_dropout": 0.1,
}


def test_shape_of_an_old_model_is_an_xglms():
    assert ModelConfig(**OLDEST) == ModelConfig()


def test_recipe_of_an_old_model_is_as_it_was():
    assert recorded_settings(ModelConfig()) == OLDEST


@pytest.mark.parametrize("key", ["architecture", "post_layernorm", "word_embed_proj_dim"])
def test_recipe_tells_an_opt_from_an_xglm(key):
    assert recorded_settings(OPT_350M)[key] == getattr(OPT_350M, key)


def test_shape_of_opt_350m_can_be():
    assert shape_problems(OPT_350M) == []


@pytest.mark.parametrize(
    "change, said",
    [
        ({"architecture": "xglm"}, "model.post_layernorm=True needs model.architecture=opt"),
        ({"architecture": "xglm", "hidden_size": 17}, "model.hidden_size=17 must be even"),
        ({"num_attention_heads": 3}, "model.num_attention_heads=3 does not divide model.hidden_size=2048"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_shape_that_cannot_be_is_explained(change, said):
    assert said in "; ".join(shape_problems(dataclasses.replace(OPT_350M, **change)))


@pytest.mark.parametrize("tp, rows", [(1, 256_128), (2, 256_256), (4, 256_512), (8, 257_024)])
def test_xglms_vocabulary_has_rows_for_every_rank_in_multiples_of_128(tp, rows):
    assert padded_vocab_size(256_008, tp) == rows


@pytest.mark.parametrize("tp, rows", [(1, 50_304), (2, 50_432), (4, 50_688)])
def test_opts_vocabulary_has_rows_for_every_rank_in_multiples_of_128(tp, rows):
    assert padded_vocab_size(50_272, tp) == rows
