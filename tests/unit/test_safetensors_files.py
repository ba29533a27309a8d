"""safetensors files written tensor by tensor are, byte for byte, those of the safetensors library."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

from xelm_nemo.checkpoint.filling import writing
from xelm_nemo.checkpoint.lazy import Batch, as_bytes, cast, is_finite, owning
from xelm_nemo.checkpoint.safetensors_files import write_safetensors
from xelm_nemo.errors import CheckpointError

ONE_FILE = 10**9


def batch(tensors):
    (dtype,) = {tensor.dtype for tensor in tensors.values()}
    return Batch({name: tuple(tensor.shape) for name, tensor in tensors.items()}, dtype, lambda: tensors)


@pytest.fixture
def tensors():
    return {
        "model.z": torch.randn(3, 5),
        "model.ä": torch.randn(2, 3, 4),
        "head": torch.randn(7),
        "empty": torch.randn(0, 4),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_file_has_the_bytes_of_the_library(tensors, tmp_path, dtype):
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    write_safetensors(tmp_path, [batch({name: tensors[name]}) for name in tensors], max_shard_bytes=ONE_FILE)
    expected = save(tensors, metadata={"format": "pt"})
    assert (tmp_path / "model.safetensors").read_bytes() == expected
    assert len(list(tmp_path.iterdir())) == 1


def test_dtypes_may_be_mixed(tensors, tmp_path):
    tensors["model.a"] = torch.ones(3, dtype=torch.bfloat16)
    write_safetensors(tmp_path, [batch({name: tensors[name]}) for name in tensors], max_shard_bytes=ONE_FILE)
    assert (tmp_path / "model.safetensors").read_bytes() == save(tensors, metadata={"format": "pt"})


def test_tensors_that_are_views_and_made_together_are_written_as_they_are(tmp_path):
    fused = torch.arange(12.0).reshape(4, 3)
    parts = {"q": fused[::2], "k": fused[1::2], "v": fused.T}
    write_safetensors(tmp_path, [batch(parts)], max_shard_bytes=ONE_FILE)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert all(torch.equal(file.get_tensor(name), part) for name, part in parts.items())


def test_files_stay_below_their_size_and_the_index_names_each_tensors(tensors, tmp_path):
    write_safetensors(tmp_path, [batch({name: tensors[name]}) for name in tensors], max_shard_bytes=100)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert index["weight_map"] == {  # 60, 96, 28 and 0 bytes
        "model.z": "model-00001-of-00003.safetensors",
        "model.ä": "model-00002-of-00003.safetensors",
        "head": "model-00003-of-00003.safetensors",
        "empty": "model-00003-of-00003.safetensors",
    }
    for name, path in index["weight_map"].items():
        with safe_open(tmp_path / path, "pt") as file:
            assert file.metadata() == {"format": "pt"}
            assert torch.equal(file.get_tensor(name), tensors[name])


def test_batch_that_fails_ends_the_writing(tmp_path):
    def fail():
        raise CheckpointError("no such tensor")

    with pytest.raises(CheckpointError, match="no such tensor"):
        write_safetensors(tmp_path, [Batch({"a": (2,)}, torch.float32, fail)], max_shard_bytes=ONE_FILE)


def test_full_disk_is_one_line(tmp_path):
    with (
        pytest.raises(CheckpointError, match=r"out cannot be written \(.*No space left on device\)"),
        writing(tmp_path / "out"),
    ):
        raise OSError(28, "No space left on device")


def test_number_too_large_for_float16_is_refused_by_name():
    large = batch({"a": torch.tensor([1.0, 70_000.0])})
    assert cast(large, None) is large
    assert cast(large, torch.bfloat16).make()["a"].dtype == torch.bfloat16
    with pytest.raises(CheckpointError, match="a holds numbers that float16 cannot; export with dtype=bf16"):
        cast(large, torch.float16).make()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_number_that_is_not_finite_is_seen_anywhere(value, dtype):
    for place in (0, 517, 1023):
        tensor = torch.randn(1024).to(dtype)
        assert is_finite(tensor)
        tensor[place] = value
        assert not is_finite(tensor)


def test_view_comes_to_own_its_storage_without_a_copy():
    whole = torch.arange(10.0)
    part = owning(whole[2:5].view(1, 3))
    assert (part.untyped_storage().nbytes(), part.data_ptr()) == (12, whole[2:].data_ptr())
    assert part.tolist() == [[2, 3, 4]]
    assert owning(whole) is whole
    assert as_bytes(part).nbytes == 12
