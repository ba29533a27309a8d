"""An expert that our loop trained, opened with NeMo."""

import pytest
import torch

from tests.helpers.commands import run, run_well
from tests.helpers.conversions import taken
from tests.helpers.hf_folders import assert_same_hf_weights
from tests.helpers.large import write_random_xglm
from tests.helpers.megatron_cpu import SEQ_LENGTH, VOCAB_SIZE, Workshop, free_ports, on_ranks, save_at
from tests.helpers.nemo import needs_nemo
from tests.helpers.random_xglm import GELU, RELU, random_xglm
from tests.helpers.weights import assert_same_weights
from xelm_nemo.artifacts import Recipe
from xelm_nemo.checkpoint.hf import import_hf
from xelm_nemo.corpus.config import TokenizerConfig
from xelm_nemo.corpus.tokenizer import train_tokenizer
from xelm_nemo.model.config import ModelConfig, ParallelConfig

pytestmark = needs_nemo
SHAPE = ModelConfig(
    num_layers=2,
    hidden_size=32,
    ffn_hidden_size=64,
    num_attention_heads=2,
    max_position_embeddings=SEQ_LENGTH,
)

FOUR_HEADS = {**GELU, "d_model": 64, "attention_heads": 4, "num_layers": 2}  # two a rank at TP2


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A model that we trained, as our command writes it: `ours` for Hugging Face, `nemo` for NeMo."""
    from xelm_nemo.expert.job import TrainJob
    from xelm_nemo.expert.loop import train

    root = tmp_path_factory.mktemp("expert")
    workshop = Workshop(root)
    workshop.set_up(SHAPE)
    train_tokenizer(["All human beings are born free."], TokenizerConfig(vocab_size=60), root / "tokenizer")
    train(TrainJob.load(workshop.job("expert", SHAPE)))
    for name, form in {"ours": "hf", "nemo": "nemo"}.items():
        words = [f"source={root / 'expert'}", f"format={form}", f"tokenizer={root / 'tokenizer'}"]
        run_well("export", *words, f"output={root / name}")
    return root


def test_nemo_exports_it_as_we_do_bit_for_bit(folders, tmp_path):
    from nemo.collections import llm

    llm.export_ckpt(folders / "nemo", "hf", output_path=tmp_path / "theirs")
    assert_same_hf_weights(tmp_path / "theirs", folders / "ours")
    same = ("config.json", "generation_config.json", "sentencepiece.bpe.model", "tokenizer_config.json")
    for name in same:
        assert (tmp_path / "theirs" / name).read_bytes() == (folders / "ours" / name).read_bytes(), name


def test_export_does_not_hold_the_model(tmp_path):
    shape = {"vocab_size": 2048, "d_model": 1024, "ffn_dim": 4096, "num_layers": 26, "attention_heads": 8}
    hf = write_random_xglm(tmp_path / "hf", **shape)
    import_hf(hf, tmp_path / "model", Recipe("model", {}))
    size = (hf / "model.safetensors").stat().st_size
    assert size > 659_000_000  # the largest tensors have 8 MiB
    assert taken("export_nemo", tmp_path / "model", tmp_path / "nemo", above="nothing_nemo") <= size / 2
    assert_same_weights(tmp_path / "nemo", tmp_path / "model")


@pytest.mark.parametrize("settings", [RELU, FOUR_HEADS], ids=["relu", "gelu"])
def test_nemo_exports_what_four_ranks_saved_as_the_original(tmp_path, settings):
    from nemo.collections import llm

    torch.manual_seed(0)
    random_xglm(**settings).save_pretrained(tmp_path / "original")
    import_hf(tmp_path / "original", tmp_path / "imported", Recipe("model", {}))
    layout = ParallelConfig(tensor_model_parallel_size=2, pipeline_model_parallel_size=2)
    on_ranks(4, save_at, tmp_path / "imported", tmp_path / "four", layout, *free_ports(1))
    run_well("export", f"source={tmp_path / 'four'}", "format=nemo", f"output={tmp_path / 'nemo'}")
    llm.export_ckpt(tmp_path / "nemo", "hf", output_path=tmp_path / "theirs")
    assert_same_hf_weights(tmp_path / "theirs", tmp_path / "original")


def test_nemo_builds_the_model_from_its_context(folders):
    from nemo.lightning import io

    model = io.load_context(folders / "nemo", subpath="model")
    assert model.config.shape() == SHAPE
    assert model.config.vocab_size == VOCAB_SIZE
    assert model.tokenizer.vocab_size == len(model.tokenizer.tokenizer)


def test_number_format_cannot_change_on_the_way(folders, tmp_path):
    words = [f"source={folders / 'expert'}", "format=nemo", "dtype=bf16", f"output={tmp_path / 'out'}"]
    code, _, error = run("export", *words)
    assert code == 2 and "dtype is not for format=nemo" in error
    assert not (tmp_path / "out").exists()
