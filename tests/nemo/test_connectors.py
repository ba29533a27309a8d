"""NeMo's own `import_ckpt` and `export_ckpt`: Hugging Face -> NeMo -> Hugging Face, every architecture."""

import pickle
import shutil

import pytest
import torch

from tests.helpers.hf_folders import assert_same_hf_settings, assert_same_hf_weights, hf_weights
from tests.helpers.hostile import RunsCode
from tests.helpers.nemo import leaves_nothing, needs_nemo, small_config
from tests.helpers.random_opt import LIKE_350M, PRE_NORM, random_opt, write_opt_tokenizer
from tests.helpers.random_xglm import GELU, RELU, change_config, logits_of, random_tokens, random_xglm
from tests.helpers.weights import assert_same_weights
from xelm_nemo.artifacts import Recipe
from xelm_nemo.checkpoint.architectures import read_shape
from xelm_nemo.checkpoint.facts import load_facts
from xelm_nemo.checkpoint.hf import import_hf
from xelm_nemo.checkpoint.nemo import import_nemo
from xelm_nemo.corpus.config import TokenizerConfig
from xelm_nemo.corpus.tokenizer import train_tokenizer
from xelm_nemo.errors import ArtifactError, CheckpointError

pytestmark = needs_nemo
TEXTS = ["All human beings are born free and equal in dignity and rights.", "Tous les êtres humains"]
# Name -> (architecture, settings).
VARIANTS = {
    "xglm_gelu": ("xglm", GELU),
    "xglm_relu_8x": ("xglm", RELU),
    "opt_pre_norm": ("opt", PRE_NORM),
    "opt_like_350m": ("opt", LIKE_350M),
}


@pytest.fixture(scope="module", params=VARIANTS)
def folders(request, tmp_path_factory):
    """Folders of one variant: original, imported by NeMo, exported by NeMo."""
    from nemo.collections import llm

    root, (architecture, settings) = tmp_path_factory.mktemp(request.param), VARIANTS[request.param]
    write_original(architecture, settings, root / "original")
    model = small_model(root / "original", architecture)
    llm.import_ckpt(model=model, source=f"hf://{root}/original", output_path=root / "imported")
    llm.export_ckpt(root / "imported", "hf", output_path=root / "exported")
    return root


def write_original(architecture, settings, folder):
    """A Hugging Face folder of random weights, with a tokenizer."""
    torch.manual_seed(0)
    {"xglm": random_xglm, "opt": random_opt}[architecture](**settings).save_pretrained(folder)
    if architecture == "opt":
        write_opt_tokenizer(TEXTS, folder)
    else:
        train_tokenizer(TEXTS, TokenizerConfig(vocab_size=100), folder)


def small_model(folder, architecture):
    """NeMo's model of the sizes in a Hugging Face folder."""
    from xelm_nemo.nemo.models import ARCHITECTURES

    return ARCHITECTURES[architecture][1](small_config(architecture, read_shape(folder)))


def test_weights_come_back_bit_for_bit(folders):
    assert_same_hf_weights(folders / "exported", folders / "original")


def test_every_setting_and_the_tokenizer_come_back(folders):
    from transformers import AutoTokenizer

    assert_same_hf_settings(folders / "exported", folders / "original")
    before, after = (AutoTokenizer.from_pretrained(folders / name) for name in ("original", "exported"))
    for text in TEXTS:
        assert after(text).input_ids == before(text).input_ids


def test_context_builds_the_model_that_the_checkpoint_is_of(folders):
    from nemo.lightning import io

    shape = read_shape(folders / "original")
    context = io.load_context(folders / "imported")
    assert type(context.model).__name__ == f"{shape.architecture.upper()}Model"
    assert context.model.config.shape() == shape
    assert context.model.config.vocab_size == 300
    assert context.model.tokenizer.text_to_ids("free")
    assert type(context.trainer.strategy).__name__ == "MegatronStrategy"


def test_the_model_that_nemo_loads_gives_the_logits_of_hugging_face(folders):
    from transformers import AutoModelForCausalLM

    from xelm_nemo.nemo.connectors import HFExporter

    model, _ = HFExporter(folders / "imported").nemo_load(folders / "imported")
    assert torch.cuda.is_available() or torch.cuda.is_initialized()  # what NeMo asserted on the way
    tokens = random_tokens(33)
    with torch.no_grad():
        found = model.module.eval().logits(tokens)
    expected = logits_of(AutoModelForCausalLM.from_pretrained(folders / "original").eval(), tokens)
    assert (found - expected).abs().max() <= 1e-4
    assert torch.equal(found.argmax(-1), expected.argmax(-1))


def test_our_import_of_the_checkpoint_is_our_import_of_the_original(folders, tmp_path):
    import_nemo(folders / "imported", tmp_path / "from_nemo", Recipe("model", {}))
    import_hf(folders / "original", tmp_path / "from_hf", Recipe("model", {}))
    assert_same_weights(tmp_path / "from_nemo", tmp_path / "from_hf")
    ours, theirs = (load_facts(tmp_path / name) for name in ("from_nemo", "from_hf"))
    assert (ours.shape, ours.vocab_size, ours.dtype) == (theirs.shape, theirs.vocab_size, theirs.dtype)


def test_bfloat16_stays_bfloat16(tmp_path):
    from nemo.collections import llm

    random_xglm(**GELU).bfloat16().save_pretrained(tmp_path / "original")
    model = small_model(tmp_path / "original", "xglm")
    train_tokenizer(TEXTS, TokenizerConfig(vocab_size=100), tmp_path / "original")
    llm.import_ckpt(model=model, source=f"hf://{tmp_path}/original", output_path=tmp_path / "imported")
    llm.export_ckpt(tmp_path / "imported", "hf", output_path=tmp_path / "exported")
    assert {tensor.dtype for tensor in hf_weights(tmp_path / "exported").values()} == {torch.bfloat16}
    assert_same_hf_weights(tmp_path / "exported", tmp_path / "original")


def test_preset_of_another_size_is_refused_with_every_difference(tmp_path):
    from nemo.collections import llm

    from xelm_nemo.nemo.models import XGLMConfig4_5B, XGLMModel

    write_original("xglm", GELU, tmp_path / "original")
    with leaves_nothing(tmp_path), pytest.raises(CheckpointError) as refused:
        llm.import_ckpt(
            model=XGLMModel(XGLMConfig4_5B()),
            source=f"hf://{tmp_path}/original",
            output_path=tmp_path / "imported",
        )
    said = str(refused.value)
    assert "num_layers=3 (XGLMConfig4_5B has 48), hidden_size=48 (XGLMConfig4_5B has 2048)" in said
    assert "activation='gelu' (XGLMConfig4_5B has 'relu')" in said
    assert "give the model the configuration of its size" in said


def test_opt_is_no_xglm(tmp_path):
    from nemo.collections import llm

    from xelm_nemo.nemo.models import XGLMModel

    write_original("opt", PRE_NORM, tmp_path / "original")
    like_it = small_config("xglm", read_shape(tmp_path / "original"))
    with leaves_nothing(tmp_path), pytest.raises(CheckpointError, match="architecture='opt'"):
        llm.import_ckpt(
            model=XGLMModel(like_it), source=f"hf://{tmp_path}/original", output_path=tmp_path / "imported"
        )


@pytest.mark.parametrize("architecture, settings", [("xglm", GELU), ("opt", PRE_NORM)])
def test_special_tokens_with_other_ids_leave_no_checkpoint_behind(tmp_path, architecture, settings):
    from nemo.collections import llm

    write_original(architecture, settings, tmp_path / "original")
    for path in (tmp_path / "original").glob("*token*"):
        path.unlink()
    write_opt_tokenizer(TEXTS, tmp_path / "original", special=("<pad>", "<s>", "</s>", "<unk>"))
    model = small_model(tmp_path / "original", architecture)
    with leaves_nothing(tmp_path), pytest.raises(ArtifactError, match="special tokens have ids"):
        llm.import_ckpt(model=model, source=f"hf://{tmp_path}/original", output_path=tmp_path / "imported")


def test_weights_that_do_not_fit_leave_no_checkpoint_behind(tmp_path):
    from nemo.collections import llm

    write_original("xglm", GELU, tmp_path / "original")
    change_config(tmp_path / "original", ffn_dim=128)
    model = small_model(tmp_path / "original", "xglm")
    with leaves_nothing(tmp_path), pytest.raises(CheckpointError, match="fc1"):
        llm.import_ckpt(model=model, source=f"hf://{tmp_path}/original", output_path=tmp_path / "imported")


@pytest.mark.parametrize("name", [".metadata", "common.pt"])
def test_pickle_that_would_run_code_is_refused_before_nemo_reads_it(folders, tmp_path, name):
    from nemo.collections import llm

    checkpoint = shutil.copytree(folders / "imported", tmp_path / "checkpoint")
    (checkpoint / "weights" / name).write_bytes(pickle.dumps([RunsCode(tmp_path / "ran")]))
    with leaves_nothing(tmp_path), pytest.raises(CheckpointError, match=f"weights/{name} "):
        llm.export_ckpt(checkpoint, "hf", output_path=tmp_path / "exported")


def test_folder_without_a_tokenizer_converts_with_a_warning_each_way(tmp_path, caplog):
    from nemo.collections import llm

    random_xglm(**GELU).save_pretrained(tmp_path / "original")
    model = small_model(tmp_path / "original", "xglm")
    llm.import_ckpt(model=model, source=f"hf://{tmp_path}/original", output_path=tmp_path / "imported")
    llm.export_ckpt(tmp_path / "imported", "hf", output_path=tmp_path / "exported")
    said = [record.message for record in caplog.records if "no tokenizer" in record.message]
    assert [message.partition(" has ")[0] for message in said] == [
        str(tmp_path / name) for name in ("original", "imported")
    ]
    import_nemo(tmp_path / "imported", tmp_path / "model", Recipe("model", {}))
    assert load_facts(tmp_path / "model").vocab_size == 300


def test_presets_are_the_published_sizes_whatever_was_made_before():
    from xelm_nemo.nemo import models

    models.XGLMConfig(), models.OPTConfig()  # NeMo would record the arguments of these classes only
    shapes = {name: getattr(models, name)() for name in vars(models) if "Config" in name and name[-1] in "MB"}
    assert len(shapes) == 13
    sizes = {name: (c.num_layers, c.hidden_size, c.ffn_hidden_size) for name, c in shapes.items()}
    assert sizes["XGLMConfig564M"] == (24, 1024, 4096)
    assert sizes["XGLMConfig2_9B"] == (48, 2048, 8192)
    assert sizes["OPTConfig66B"] == (64, 9216, 36864)
    assert shapes["XGLMConfig4_5B"].shape().activation == "relu"
    small = shapes["OPTConfig350M"].shape()
    assert (small.post_layernorm, small.word_embed_proj_dim, small.activation) == (True, 512, "relu")
    assert all(config.__io__.__fn_or_cls__.__name__ == name for name, config in shapes.items())
