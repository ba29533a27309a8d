"""What a Hugging Face XGLM may look like on disk, and what an exported one does."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.random_xglm import RELU, change_config, change_weights, random_xglm
from xelm_nemo.artifacts import Recipe
from xelm_nemo.checkpoint import hf, store
from xelm_nemo.checkpoint.hf import export_hf, import_hf
from xelm_nemo.corpus.config import TokenizerConfig
from xelm_nemo.corpus.tokenizer import train_tokenizer
from xelm_nemo.errors import ArtifactError
from xelm_nemo.model.config import ModelConfig

RECIPE = Recipe("model", {"source": "hf"})
TEXTS = [
    "All human beings are born free and equal in dignity and rights.",
    "Tous les êtres humains naissent libres et égaux en dignité et en droits.",
]


def tokenizer_in(folder):
    train_tokenizer(TEXTS, TokenizerConfig(vocab_size=100), folder)
    return folder


def load(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


@pytest.fixture
def original(tmp_path):
    """A Hugging Face folder to change."""
    random_xglm(**RELU).save_pretrained(tmp_path / "original")
    return tmp_path / "original"


@pytest.fixture
def to_hf(tmp_path):
    """Import a folder and export it again."""

    def convert(source, **options):
        import_hf(source, tmp_path / "imported", RECIPE)
        tokenizer = tokenizer_in(tmp_path / "tokenizer")
        export_hf(tmp_path / "imported", tmp_path / "exported", tokenizer=tokenizer, **options)
        return tmp_path / "exported"

    return convert


def weights_of(folder):
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def test_shards_are_read_and_written(original, to_hf, monkeypatch):
    expected = weights_of(original)
    load(original).save_pretrained(original, max_shard_size="50KB")
    (original / "model.safetensors").unlink(missing_ok=True)
    assert len(list(original.glob("*.safetensors"))) > 1
    monkeypatch.setattr(hf, "MAX_SHARD_BYTES", 50_000)
    exported = to_hf(original)
    assert len(list(exported.glob("*.safetensors"))) > 1
    assert set(json.loads((exported / "model.safetensors.index.json").read_text())["weight_map"]) == set(
        expected
    )
    found = weights_of(exported)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert load(exported).num_parameters() == load(original).num_parameters()


@pytest.mark.parametrize("is_zip", [True, False])
def test_torch_file_is_read_with_its_second_name_of_the_tied_head(original, to_hf, is_zip):
    expected = weights_of(original)
    state = load(original).state_dict()
    assert "lm_head.weight" in state
    torch.save(state, original / "pytorch_model.bin", _use_new_zipfile_serialization=is_zip)
    (original / "model.safetensors").unlink()
    found = weights_of(to_hf(original))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_number_format_is_kept(original, to_hf, dtype):
    change_weights(original, lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()})
    expected, folder = weights_of(original), to_hf(original)
    found = weights_of(folder)
    assert {tensor.dtype for tensor in found.values()} == {dtype}
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert load_dtype(folder) == dtype


def load_dtype(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").dtype


def test_settings_come_from_the_config_alone(original, tmp_path):
    renamed = shutil.copytree(original, tmp_path / "xglm-7.5B")
    change_config(renamed, dropout=0.25, attention_dropout=0.125, init_std=0.006, max_position_embeddings=40)
    import_hf(renamed, tmp_path / "imported", RECIPE)
    facts = store.load_facts(tmp_path / "imported")
    assert facts.shape == ModelConfig(
        num_layers=2,
        hidden_size=32,
        ffn_hidden_size=256,
        num_attention_heads=2,
        activation="relu",
        max_position_embeddings=40,
        init_method_std=0.006,
        hidden_dropout=0.25,
        attention_dropout=0.125,
    )
    assert (facts.vocab_size, facts.dtype, facts.name) == (300, "fp32", "xglm-7.5B")


def test_model_card_tells_what_is_known(original, to_hf):
    from huggingface_hub import ModelCard

    facts = {"languages": ["de", "nl"], "clusters": [3]}
    card = ModelCard.load(to_hf(original, card=facts) / "README.md")
    assert card.data.language == ["de", "nl"]
    assert card.data.library_name == "transformers"
    for row in (
        "| name | original |",
        "| languages | de, nl |",
        "| clusters | 3 |",
        "| layers, hidden size, heads | 2, 32, 2 |",
    ):
        assert row in card.text
    assert "AutoModelForCausalLM.from_pretrained" in card.text


def test_model_card_can_be_given_as_text(original, to_hf):
    assert (to_hf(original, card="# Mine\n") / "README.md").read_text() == "# Mine\n"


def test_tokenizer_with_more_tokens_than_the_model_is_refused(original, tmp_path):
    change_config(original, vocab_size=20)
    change_weights(
        original,
        lambda tensors: (
            tensors | {"model.embed_tokens.weight": tensors["model.embed_tokens.weight"][:20].clone()}
        ),
    )
    import_hf(original, tmp_path / "imported", RECIPE)
    tokenizer = tokenizer_in(tmp_path / "tokenizer")
    with pytest.raises(ArtifactError, match=r"tokenizer has \d+ tokens and .*imported only 20"):
        export_hf(tmp_path / "imported", tmp_path / "exported", tokenizer=tokenizer)
    assert not (tmp_path / "exported").exists()
