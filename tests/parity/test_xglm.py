"""Hugging Face XGLM -> our model -> Hugging Face XGLM: the same logits, then the same bits."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.random_xglm import (
    GELU,
    RELU,
    change_config,
    change_weights,
    logits_of,
    random_tokens,
    random_xglm,
)
from xelm_nemo import device, parallel
from xelm_nemo.artifacts import Recipe
from xelm_nemo.checkpoint import hf, store
from xelm_nemo.checkpoint.hf import export_hf, import_hf
from xelm_nemo.corpus.config import TokenizerConfig
from xelm_nemo.corpus.tokenizer import train_tokenizer
from xelm_nemo.errors import ArtifactError
from xelm_nemo.model.config import ModelConfig, ParallelConfig

RECIPE = Recipe("model", {"source": "hf"})
VARIANTS = {"gelu": GELU, "relu_8x": RELU}
TEXTS = [
    "All human beings are born free and equal in dignity and rights.",
    "Tous les êtres humains naissent libres et égaux en dignité et en droits.",
]


@pytest.fixture(scope="module", params=VARIANTS)
def folders(request, tmp_path_factory):
    """Folders of one variant: original, imported, exported."""
    root = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    random_xglm(**VARIANTS[request.param]).save_pretrained(root / "original")
    import_hf(root / "original", root / "imported", RECIPE)
    export_hf(root / "imported", root / "exported", tokenizer=tokenizer_in(root / "tokenizer"))
    return root


def tokenizer_in(folder):
    train_tokenizer(TEXTS, TokenizerConfig(vocab_size=100), folder)
    return folder


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
    original, exported = (
        load_file(folders / name / "model.safetensors") for name in ("original", "exported")
    )
    assert exported.keys() == original.keys()
    for name, expected in original.items():
        assert exported[name].dtype == expected.dtype
        assert torch.equal(exported[name], expected), name


def test_transformers_gives_the_same_logits_for_the_exported_folder(folders):
    tokens = random_tokens(20)
    original, exported = (logits_of(load(folders / name), tokens) for name in ("original", "exported"))
    assert torch.equal(exported, original)


def test_exported_config_has_every_setting_of_the_original(folders):
    original, exported = (
        json.loads((folders / name / "config.json").read_text()) for name in ("original", "exported")
    )
    # Who wrote the file, and the dtype's name in newer and in older versions.
    for config in (original, exported):
        config.pop("transformers_version", None)
        config["dtype"] = config.pop("torch_dtype", None) or config["dtype"]
    assert {key: exported.get(key) for key in original} == original


def test_exported_folder_holds_tokenizer_and_generation_config(folders):
    from transformers import AutoTokenizer, GenerationConfig

    before, after = (AutoTokenizer.from_pretrained(folders / name) for name in ("tokenizer", "exported"))
    for text in TEXTS:
        assert after(text).input_ids == before(text).input_ids
    generation = GenerationConfig.from_pretrained(folders / "exported")
    assert (generation.bos_token_id, generation.pad_token_id, generation.eos_token_id) == (0, 1, 2)


def test_whoever_may_read_the_exported_config_may_read_the_weights(folders):
    config, weights = ((folders / "exported" / name).stat() for name in ("config.json", "model.safetensors"))
    assert weights.st_mode == config.st_mode


def test_padding_rows_of_an_imported_embedding_are_zero(folders):
    with parallel.model_parallel():
        weight = store.load_model(folders / "imported", ParallelConfig()).embedding.word_embeddings.weight
    assert weight.shape[0] == 384
    assert not weight[300:].any()


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
    monkeypatch.setattr(hf, "MAX_SHARD_SIZE", "50KB")
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


@pytest.mark.parametrize(
    "dtype, exported", [(torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)]
)
def test_number_format_is_kept_or_widened(original, to_hf, dtype, exported):
    change_weights(original, lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()})
    expected, folder = weights_of(original), to_hf(original)
    found = weights_of(folder)
    assert {tensor.dtype for tensor in found.values()} == {exported}
    assert all(torch.equal(found[name], expected[name].to(exported)) for name in expected)
    assert load_dtype(folder) == exported


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
