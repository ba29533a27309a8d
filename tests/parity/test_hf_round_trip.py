"""Hugging Face -> our model -> Hugging Face, every architecture: the same logits, then the same bits."""

import json

import pytest
import torch

from tests.helpers.hf_folders import assert_same_hf_settings, assert_same_hf_weights
from tests.helpers.random_opt import write_opt_tokenizer
from tests.helpers.random_xglm import logits_of, random_tokens
from tests.helpers.variants import VARIANTS, random_variant
from xelm_nemo import device, parallel
from xelm_nemo.artifacts import Recipe
from xelm_nemo.checkpoint import store
from xelm_nemo.checkpoint.hf import export_hf, import_hf
from xelm_nemo.corpus.config import TokenizerConfig
from xelm_nemo.corpus.tokenizer import train_tokenizer
from xelm_nemo.model.config import ParallelConfig

TEXTS = [
    "All human beings are born free and equal in dignity and rights.",
    "Tous les êtres humains naissent libres et égaux en dignité et en droits.",
]


@pytest.fixture(scope="module", params=VARIANTS)
def folders(request, tmp_path_factory):
    """Folders of one variant: original, imported, exported."""
    root = tmp_path_factory.mktemp(request.param)
    random_variant(request.param).save_pretrained(root / "original")
    import_hf(root / "original", root / "imported", Recipe("model", {}))
    write_tokenizer(VARIANTS[request.param][0], root / "tokenizer")
    export_hf(root / "imported", root / "exported", tokenizer=root / "tokenizer")
    return root


def write_tokenizer(architecture, folder):
    if architecture == "opt":
        write_opt_tokenizer(TEXTS, folder)
    else:
        train_tokenizer(TEXTS, TokenizerConfig(vocab_size=100), folder)


def our_logits(folder, *batches):
    """Logits of a model folder for each batch of token ids."""
    with parallel.model_parallel(), torch.no_grad():
        model = store.load_model(folder, ParallelConfig()).eval()
        return [model.logits(tokens.to(device.device())).cpu() for tokens in batches]


def load(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


def test_imported_model_gives_the_same_logits_at_every_length(folders):
    batches = [random_tokens(length) for length in (1, 2, 7, 33, 64)]
    original = load(folders / "original")
    for tokens, found in zip(batches, our_logits(folders / "imported", *batches), strict=True):
        expected = logits_of(original, tokens)
        assert found.shape == expected.shape
        assert (found - expected).abs().max() <= 1e-4
        assert torch.equal(found.argmax(-1), expected.argmax(-1))


def test_exported_weights_are_the_imported_ones_bit_for_bit(folders):
    assert_same_hf_weights(folders / "exported", folders / "original")


def test_transformers_gives_the_same_logits_for_the_exported_folder(folders):
    tokens = random_tokens(20)
    original, exported = (logits_of(load(folders / name), tokens) for name in ("original", "exported"))
    assert torch.equal(exported, original)


def test_exported_config_has_every_setting_of_the_original(folders):
    assert_same_hf_settings(folders / "exported", folders / "original")


def test_exported_folder_holds_tokenizer_and_generation_config(folders):
    from transformers import AutoTokenizer, GenerationConfig

    before, after = (AutoTokenizer.from_pretrained(folders / name) for name in ("tokenizer", "exported"))
    for text in TEXTS:
        assert after(text).input_ids == before(text).input_ids
    original = json.loads((folders / "original/config.json").read_text())
    generation = GenerationConfig.from_pretrained(folders / "exported")
    for name in ("bos_token_id", "pad_token_id", "eos_token_id"):
        assert getattr(generation, name) == original[name]


def test_whoever_may_read_the_exported_config_may_read_the_weights(folders):
    config, weights = ((folders / "exported" / name).stat() for name in ("config.json", "model.safetensors"))
    assert weights.st_mode == config.st_mode


def test_padding_rows_of_an_imported_embedding_are_zero(folders):
    with parallel.model_parallel():
        weight = store.load_model(folders / "imported", ParallelConfig()).embedding.word_embeddings.weight
    assert weight.shape[0] == 384
    assert not weight[300:].any()
