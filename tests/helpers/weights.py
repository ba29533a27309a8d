"""Read the weights of a model folder, or change them, without building the model."""

import dataclasses
import shutil

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from xelm_nemo.checkpoint.distributed import open_weights
from xelm_nemo.checkpoint.distributed_files import write_weights
from xelm_nemo.checkpoint.facts import load_facts


def read_weights(model_folder):
    """Every tensor of `<model_folder>/weights`, by checkpoint name."""
    reader = FileSystemReader(model_folder / "weights")
    entries = reader.read_metadata().state_dict_metadata.items()
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in entries
        if isinstance(entry, TensorStorageMetadata)
    }
    dcp.load(tensors, storage_reader=reader, no_dist=True)
    return tensors


def replace_weight(folder, name, change):
    """Write a distributed checkpoint again with what `change` makes of one of its tensors."""
    tensors = open_weights(folder)
    tensor = change(tensors[name].read())
    changed = dataclasses.replace(tensors[name], shape=tuple(tensor.shape), read=lambda: tensor)
    written = folder.with_name("written")
    written.mkdir()
    write_weights(written, tensors | {name: changed})
    shutil.rmtree(folder)
    written.rename(folder)


def assert_same_tensors(found, expected):
    """The same names, and under each the same tensor: number format and every bit."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def assert_same_weights(folder, expected):
    """Two model folders hold the same tensors."""
    assert_same_tensors(read_weights(folder), read_weights(expected))


def assert_same_model(folder, expected):
    """Two model folders hold the same weights, of the same sizes and in the same number format."""
    found, wanted = (load_facts(place) for place in (folder, expected))
    assert (found.shape, found.vocab_size, found.dtype) == (wanted.shape, wanted.vocab_size, wanted.dtype)
    assert_same_weights(folder, expected)
