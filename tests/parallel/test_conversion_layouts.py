"""A model saved at any layout leaves as the Hugging Face model it was, and computes the same on the way."""

import dataclasses
import os

import pytest
import torch

from tests.helpers import megatron_cpu
from tests.helpers.hf_folders import assert_same_hf_weights
from tests.helpers.metaseq_files import metaseq_tensors
from tests.helpers.nemo_files import write_nemo_checkpoint
from tests.helpers.random_opt import LIKE_350M, random_opt
from tests.helpers.random_xglm import RELU, logits_of, random_tokens, random_xglm
from tests.helpers.weights import assert_same_tensors, assert_same_weights
from xelm_nemo import parallel
from xelm_nemo.artifacts import Recipe
from xelm_nemo.checkpoint import store
from xelm_nemo.checkpoint.facts import load_facts
from xelm_nemo.checkpoint.hf import export_hf, import_hf
from xelm_nemo.checkpoint.metaseq_export import export_metaseq
from xelm_nemo.checkpoint.nemo import import_nemo
from xelm_nemo.model.config import ParallelConfig

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="compares CPU ranks; CUDA_VISIBLE_DEVICES= hides the GPUs from them"
)
RECIPE = Recipe("model", {})
SIX_HEADS = {"num_layers": 2, "d_model": 48, "attention_heads": 6, "ffn_dim": 192}  # three a rank at TP2
ORIGINALS = {
    "xglm_gelu": lambda: random_xglm(**SIX_HEADS, activation_function="gelu"),
    "xglm_relu_8x": lambda: random_xglm(**RELU),
    "xglm_odd_heads": lambda: random_xglm(**{**SIX_HEADS, "attention_heads": 3}),
    "opt_pre_norm": lambda: random_opt(
        hidden_size=48, num_attention_heads=6, ffn_dim=192, num_hidden_layers=2
    ),
    "opt_like_350m": lambda: random_opt(**LIKE_350M),
}
NOT_AT_TP2 = {"xglm_odd_heads"}
LAYOUTS = {
    "tp1": ParallelConfig(),
    "tp2": ParallelConfig(tensor_model_parallel_size=2),
    "pp2": ParallelConfig(pipeline_model_parallel_size=2),
    "tp2_pp2": ParallelConfig(tensor_model_parallel_size=2, pipeline_model_parallel_size=2),
}


@dataclasses.dataclass(frozen=True)
class Move:
    """A model that is loaded from one folder at a layout, and saved from there into another."""

    source: str
    layout: str
    target: str


TWO_RANKS = [
    Move("imported", "tp2", "tp2"),
    Move("imported", "pp2", "pp2"),
    Move("tp2", "pp2", "tp2_then_pp2"),
    Move("pp2", "tp2", "pp2_then_tp2"),
]
FOUR_RANKS = [
    Move("imported", "tp2_pp2", "tp2_pp2"),
    Move("tp2_then_pp2", "tp2_pp2", "pp2_then_tp2_pp2"),
]
BACK = [Move("tp2_then_pp2", "tp1", "pp2_then_tp1"), Move("pp2_then_tp2", "tp1", "tp2_then_tp1")]
BACK_FROM_FOUR = [Move("tp2_pp2", "tp1", "tp2_pp2_then_tp1")]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The originals, imported, and the logits that Hugging Face's models give."""
    root = tmp_path_factory.mktemp("layouts")
    torch.manual_seed(0)
    tokens = random_tokens(24)
    torch.save(tokens, root / "tokens.pt")
    for name, make in ORIGINALS.items():
        model = make()
        model.save_pretrained(root / name / "original")
        import_hf(root / name / "original", root / name / "imported", RECIPE)
        torch.save(logits_of(model, tokens), root / name / "logits.pt")
    return root


@pytest.fixture(scope="module")
def on_two_ranks(root):
    """Every move of two ranks, and back to one. Starting ranks is what takes time, so one pair does all."""
    move_on_ranks(2, root, TWO_RANKS)
    move_all(root, BACK)
    return root


@pytest.fixture(scope="module")
def on_four_ranks(on_two_ranks):
    """Every move of four ranks, and back to one."""
    move_on_ranks(4, on_two_ranks, FOUR_RANKS)
    move_all(on_two_ranks, BACK_FROM_FOUR)
    return on_two_ranks


def move_on_ranks(num_ranks, root, moves):
    ports = megatron_cpu.free_ports(len(moves))
    megatron_cpu.on_ranks(num_ranks, move_all, root, moves, ports)


def move_all(root, moves, ports=()):
    """What each rank does: every move in a process group of its own, with every model that it fits."""
    tokens = torch.load(root / "tokens.pt")
    for number, move in enumerate(moves):
        if ports:
            os.environ["MASTER_PORT"] = str(ports[number])
        layout = LAYOUTS[move.layout]
        sizes = {
            "tensor_model_parallel_size": layout.tensor_model_parallel_size,
            "pipeline_model_parallel_size": layout.pipeline_model_parallel_size,
        }
        with parallel.model_parallel(**sizes):
            for name in ORIGINALS:
                if (root / name / move.source).is_dir() and fits(name, move.layout):
                    move_one(root / name, move, layout, tokens)


def fits(name, layout):
    return name not in NOT_AT_TP2 or "tp2" not in layout


def move_one(folder, move, layout, tokens):
    model = store.load_model(folder / move.source, layout)
    logits = megatron_cpu.logits_at_layout(model, tokens)
    store.save_model(folder / move.target, model, load_facts(folder / "imported"), RECIPE)
    if logits is not None:  # the same on both ranks of tensor parallelism
        torch.save(logits, folder / f"{move.target}.{os.getpid()}.logits")


def cases(moves):
    return [
        pytest.param(name, move, id=f"{name}-{move.target}")
        for name in ORIGINALS
        for move in moves
        if fits(name, f"{move.source} {move.layout}")
    ]


def assert_same_model(folder, move, tmp_path):
    expected = torch.load(folder / "logits.pt")
    found = list(folder.glob(f"{move.target}.*.logits"))
    assert len(found) == LAYOUTS[move.layout].tensor_model_parallel_size
    for path in found:
        logits = torch.load(path)
        assert (logits - expected).abs().max() <= 1e-4
        assert torch.equal(logits.argmax(-1), expected.argmax(-1))
    export_hf(folder / move.target, tmp_path / "exported", tokenizer=None)
    assert_same_hf_weights(tmp_path / "exported", folder / "original")


@pytest.mark.parametrize("name, move", cases([*TWO_RANKS, *BACK]))
def test_model_is_the_same_at_two_ranks_and_after(on_two_ranks, tmp_path, name, move):
    assert_same_model(on_two_ranks / name, move, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name, move", cases([*FOUR_RANKS, *BACK_FROM_FOUR]))
def test_model_is_the_same_at_four_ranks_and_after(on_four_ranks, tmp_path, name, move):
    assert_same_model(on_four_ranks / name, move, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["xglm_gelu", "xglm_relu_8x"])
def test_metaseq_file_from_four_ranks_is_the_original(on_four_ranks, tmp_path, name):
    from transformers import AutoModelForCausalLM

    export_metaseq(on_four_ranks / name / "tp2_pp2", tmp_path / "out")
    found = torch.load(tmp_path / "out/consolidated.pt", weights_only=True)["model"]
    original = AutoModelForCausalLM.from_pretrained(on_four_ranks / name / "original")
    assert_same_tensors(found, metaseq_tensors(original))


@pytest.mark.parametrize("target", ["tp2", "pp2"])
def test_nemo_checkpoint_of_two_ranks_becomes_the_model_of_one(on_two_ranks, tmp_path, target):
    assert_same_after_nemo(on_two_ranks / "opt_like_350m", target, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["xglm_gelu", "opt_like_350m"])
def test_nemo_checkpoint_of_four_ranks_becomes_the_model_of_one(on_four_ranks, tmp_path, name):
    assert_same_after_nemo(on_four_ranks / name, "tp2_pp2", tmp_path)


def assert_same_after_nemo(folder, target, tmp_path):
    checkpoint = write_nemo_checkpoint(folder / target, tmp_path / "checkpoint", vocab_size=300)
    import_nemo(checkpoint, tmp_path / "imported", RECIPE)
    assert_same_weights(tmp_path / "imported", folder / "imported")
