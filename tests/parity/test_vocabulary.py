"""XGLM's own vocabulary of 256,008: padded on the way in, at every layout, and cut off on the way out."""

import shutil

import pytest
import torch

from tests.helpers.hf_folders import assert_same_hf_weights, hf_weights
from tests.helpers.random_xglm import RELU, random_xglm
from tests.helpers.weights import read_weights
from xelm_nemo.artifacts import Recipe
from xelm_nemo.checkpoint.distributed import open_weights
from xelm_nemo.checkpoint.distributed_files import write_weights
from xelm_nemo.checkpoint.facts import WEIGHTS, load_facts
from xelm_nemo.checkpoint.hf import export_hf, import_hf
from xelm_nemo.checkpoint.lazy import LazyTensor
from xelm_nemo.model.config import padded_vocab_size

VOCAB_SIZE = 256_008
TABLE = "embedding.word_embeddings.weight"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("vocabulary")
    torch.manual_seed(0)
    random_xglm(**{**RELU, "d_model": 16, "num_layers": 1}, vocab_size=VOCAB_SIZE).save_pretrained(
        root / "hf"
    )
    import_hf(root / "hf", root / "model", Recipe("model", {}))
    return root


def test_imported_table_has_rows_of_zeros_up_to_256_128(folders):
    assert load_facts(folders / "model").vocab_size == VOCAB_SIZE
    table = read_weights(folders / "model")[f"module.{TABLE}"]
    assert table.shape == (256_128, 16)
    assert torch.equal(table[:VOCAB_SIZE], hf_weights(folders / "hf")["model.embed_tokens.weight"])
    assert not table[VOCAB_SIZE:].any()


def test_exported_table_has_the_vocabularys_rows(folders, tmp_path):
    export_hf(folders / "model", tmp_path / "out", tokenizer=None)
    assert_same_hf_weights(tmp_path / "out", folders / "hf")


@pytest.mark.parametrize("tp", [2, 4])
def test_table_of_another_layout_with_trained_padding_leaves_without_it(folders, tmp_path, tp):
    shutil.copytree(folders / "model", tmp_path / "model", ignore=shutil.ignore_patterns(WEIGHTS))
    (tmp_path / "model" / WEIGHTS).mkdir()
    weights = open_weights(folders / "model" / WEIGHTS)
    table = torch.ones(padded_vocab_size(VOCAB_SIZE, tp), 16)
    table[:VOCAB_SIZE] = weights[TABLE].read()[:VOCAB_SIZE]
    padded = LazyTensor(tuple(table.shape), table.dtype, lambda: table, "here")
    write_weights(tmp_path / "model" / WEIGHTS, weights | {TABLE: padded})
    export_hf(tmp_path / "model", tmp_path / "out", tokenizer=None)
    assert_same_hf_weights(tmp_path / "out", folders / "hf")
