"""Pickles that would run code: a distributed checkpoint's are looked through before anything reads them."""

import pickle

import pytest
import torch

from tests.helpers.runs_code import RunsCode
from tests.helpers.variants import random_variant
from xelm_nemo import parallel
from xelm_nemo.artifacts import Recipe
from xelm_nemo.checkpoint import store
from xelm_nemo.checkpoint.distributed import open_weights
from xelm_nemo.checkpoint.facts import WEIGHTS
from xelm_nemo.checkpoint.hf import import_hf
from xelm_nemo.errors import CheckpointError
from xelm_nemo.model.config import ParallelConfig


@pytest.fixture
def model(tmp_path):
    random_variant("xglm_relu_8x").save_pretrained(tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "model", Recipe("model", {}))
    return tmp_path / "model"


def read_by_us(model):
    open_weights(model / WEIGHTS)


def read_by_megatron(model):
    with parallel.model_parallel(alone=True):
        store.load_model(model, ParallelConfig())


READERS = pytest.mark.parametrize("read", [read_by_us, read_by_megatron])


def refusal(read, model):
    with pytest.raises(CheckpointError) as caught:
        read(model)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@READERS
def test_index_that_would_run_code_does_not(model, tmp_path, read):
    (model / WEIGHTS / ".metadata").write_bytes(pickle.dumps([1, RunsCode(tmp_path / "ran")]))
    assert f"{model / WEIGHTS / '.metadata'} names io.open" in refusal(read, model)
    assert not (tmp_path / "ran").exists()


@READERS
def test_common_part_that_would_run_code_does_not(model, tmp_path, read):
    torch.save({"args": RunsCode(tmp_path / "ran")}, model / WEIGHTS / "common.pt")
    assert f"{model / WEIGHTS / 'common.pt'} names io.open" in refusal(read, model)
    assert not (tmp_path / "ran").exists()


METADATA = b"ctorch.distributed.checkpoint.metadata\nMetadata\n"


@pytest.mark.parametrize(
    "program, said",
    [
        (b"cos\nsystem\n(X\x04\x00\x00\x00truetR.", "names os.system"),
        (b"ctorch.serialization\nload\n.", "names torch.serialization.load"),
        (b"c__builtin__\neval\n.", "names __builtin__.eval"),
        # What sets an attribute of a class that it may name: "slot state".
        (METADATA + b"N}X\x07\x00\x00\x00versionX\x01\x00\x00\x00xs\x86b.", "cannot be read"),
        (b"}.", "cannot be read (it holds no index)"),
        (b"ctorch\nSize\n).", "cannot be read"),
        (b"", "cannot be read"),
        (b"not a pickle", "cannot be read"),
    ],
    ids=["system", "load", "eval", "class", "dict", "other", "empty", "text"],
)
def test_index_that_is_anything_else_is_refused(model, program, said):
    (model / WEIGHTS / ".metadata").write_bytes(b"\x80\x02" + program if program else b"")
    assert said in refusal(read_by_us, model)


def test_truncated_index_is_named(model):
    path = model / WEIGHTS / ".metadata"
    path.write_bytes(path.read_bytes()[:-100])
    assert f"{path} cannot be read" in refusal(read_by_us, model)
