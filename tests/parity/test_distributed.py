"""The distributed checkpoints that conversions write are those that Megatron writes, and are read alike."""

import dataclasses
import pickle

import pytest
import torch
import torch.distributed.checkpoint as dcp

from tests.helpers.variants import VARIANTS, random_variant
from tests.helpers.weights import read_weights
from xelm_nemo import parallel
from xelm_nemo.artifacts import Recipe
from xelm_nemo.checkpoint import store
from xelm_nemo.checkpoint.distributed import open_weights
from xelm_nemo.checkpoint.distributed_files import write_weights
from xelm_nemo.checkpoint.facts import WEIGHTS, load_facts
from xelm_nemo.checkpoint.hf import import_hf
from xelm_nemo.errors import CheckpointError
from xelm_nemo.files import read_json
from xelm_nemo.model.config import ParallelConfig

RECIPE = Recipe("model", {})
FC1 = "decoder.layers.1.mlp.linear_fc1.weight"


@pytest.fixture(scope="module", params=VARIANTS)
def folders(request, tmp_path_factory):
    """The same model, written by a conversion and by Megatron."""
    root = tmp_path_factory.mktemp(request.param)
    random_variant(request.param).save_pretrained(root / "hf")
    import_hf(root / "hf", root / "ours", RECIPE)
    with parallel.model_parallel(alone=True):
        model = store.load_model(root / "ours", ParallelConfig())
        store.save_model(root / "megatron", model, load_facts(root / "ours"), RECIPE)
    return root


@pytest.fixture
def weights(tmp_path):
    """A distributed checkpoint to damage."""
    random_variant("xglm_relu_8x").save_pretrained(tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "model", RECIPE)
    return tmp_path / "model" / WEIGHTS


def index_of(folder):
    return dcp.FileSystemReader(folder / WEIGHTS).read_metadata()


def test_index_is_that_of_megatron(folders):
    ours, megatrons = (index_of(folders / name) for name in ("ours", "megatron"))
    assert type(ours) is type(megatrons)
    assert ours.mcore_data == megatrons.mcore_data
    found, expected = ours.state_dict_metadata, megatrons.state_dict_metadata
    assert found.keys() == expected.keys()
    for key, entry in expected.items():
        assert (found[key].size, found[key].properties) == (entry.size, entry.properties), key
        assert sorted(map(repr, found[key].chunks)) == sorted(map(repr, entry.chunks)), key
    assert ours.storage_data.keys() == megatrons.storage_data.keys()


def test_files_beside_the_index_are_those_of_megatron(folders):
    ours, megatrons = (folders / name / WEIGHTS for name in ("ours", "megatron"))
    assert read_json(ours / "metadata.json") == read_json(megatrons / "metadata.json")
    assert torch.load(ours / "common.pt") == torch.load(megatrons / "common.pt") == {}


def test_tensors_are_read_as_megatron_and_torch_read_them(folders):
    stacked = read_weights(folders / "megatron")
    lazy = open_weights(folders / "megatron" / WEIGHTS)
    for name, tensor in lazy.items():
        kind = name.replace("decoder.layers.", "", 1).partition(".") if "decoder.layers." in name else None
        whole = (
            stacked[f"module.decoder.layers.{kind[2]}"][int(kind[0])] if kind else stacked["module." + name]
        )
        assert (tensor.shape, tensor.dtype) == (tuple(whole.shape), whole.dtype)
        assert torch.equal(tensor.read(), whole), name
    assert len(lazy) == sum(len(t) if ".layers." in name else 1 for name, t in stacked.items())


def test_same_weights_give_the_same_digest(weights, tmp_path):
    import_hf(tmp_path / "hf", tmp_path / "again", RECIPE)
    first, second = (read_json(tmp_path / name / "manifest.json") for name in ("model", "again"))
    assert first["digest"] == second["digest"]


def test_tensor_for_each_layer_is_read_too(weights, tmp_path):
    """As Megatron writes models whose layers differ."""
    tensors = {name: tensor.read() for name, tensor in open_weights(weights).items()}
    state = {"module." + name: tensor for name, tensor in tensors.items()}
    dcp.save(state, storage_writer=dcp.FileSystemWriter(tmp_path / "apart"), no_dist=True)
    torch.save({}, tmp_path / "apart" / "common.pt")
    found = open_weights(tmp_path / "apart")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name].read(), tensor) for name, tensor in tensors.items())


def test_what_is_beside_the_weights_is_left_out(weights, tmp_path):
    """FP8 scales, and what an optimizer keeps."""
    state = {
        "module.decoder.final_layernorm.weight": torch.ones(3),
        "module.decoder.layers.mlp.linear_fc1._extra_state/shard_0_2": "scales",
        "module.decoder.layers.mlp.linear_fc2._extra_state": torch.ones(2, 1),
        "optimizer.state.exp_avg.module.decoder.final_layernorm.weight": torch.ones(3),
    }
    dcp.save(state, storage_writer=dcp.FileSystemWriter(tmp_path / "more"), no_dist=True)
    torch.save({}, tmp_path / "more" / "common.pt")
    assert list(open_weights(tmp_path / "more")) == ["decoder.final_layernorm.weight"]


def assert_refused(action, *said):
    with pytest.raises(CheckpointError) as caught:
        action()
    assert "\n" not in str(caught.value)
    for part in said:
        assert part in str(caught.value)


def test_missing_file_is_named(weights):
    path = min(weights.glob("*.distcp"))
    path.unlink()
    assert_refused(lambda: open_weights(weights), str(path), "is missing")


@pytest.mark.parametrize("name", [".metadata", "common.pt"])
def test_missing_index_is_named(weights, name):
    (weights / name).unlink()
    assert_refused(lambda: open_weights(weights), str(weights / name), "is missing")


def test_truncated_file_names_the_tensor(weights):
    for path in weights.glob("*.distcp"):
        path.write_bytes(path.read_bytes()[:100])
    tensor = open_weights(weights)[FC1]
    assert_refused(tensor.read, str(weights), "module.decoder.layers.mlp.linear_fc1.weight cannot be read")


def test_tensor_that_is_not_whole_is_named(weights):
    index = dcp.FileSystemReader(weights).read_metadata()
    index.state_dict_metadata["module.decoder.layers.mlp.linear_fc1.weight"].chunks.pop()
    write_index(weights, index)
    assert_refused(open_weights(weights)[FC1].read, "linear_fc1.weight is not whole")


def set_entries(index, change):
    index.state_dict_metadata = change(index.state_dict_metadata)


def set_size(index, name, size):
    entry = index.state_dict_metadata[f"module.{name}"]
    entry.size = torch.Size(size)


KIND, NORM = "decoder.layers.mlp.linear_fc1.weight", "decoder.final_layernorm.weight"


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda index: set_size(index, KIND, []), f"{KIND} has shape [], which is none of layers"),
        (lambda index: set_size(index, KIND, [10**12, 2, 2]), "which is none of layers"),
        (lambda index: set_size(index, NORM, [10**12]), f"{NORM} is not whole"),
        (lambda index: set_entries(index, lambda entries: "text"), ".metadata cannot be read"),
    ],
    ids=["no_dimension", "layers", "size", "text"],
)
def test_index_that_describes_no_tensors_is_refused(weights, change, said):
    index = dcp.FileSystemReader(weights).read_metadata()
    change(index)
    write_index(weights, index)
    assert_refused(lambda: open_weights(weights)[NORM].read(), str(weights), said)


def write_index(folder, index):
    (folder / ".metadata").write_bytes(pickle.dumps(index))


@pytest.mark.parametrize("place", ["../elsewhere.distcp", "/absolute.distcp", "deeper/0.distcp"])
def test_index_that_names_a_file_outside_its_folder_is_refused(weights, place):
    index = dcp.FileSystemReader(weights).read_metadata()
    next(iter(index.storage_data.values())).relative_path = place
    write_index(weights, index)
    assert_refused(
        lambda: open_weights(weights), str(weights / ".metadata"), repr(place), "outside its folder"
    )


def test_tensor_that_cannot_be_read_ends_the_writing(weights, tmp_path):
    def fail():
        raise CheckpointError("bad tensor")

    tensors = open_weights(weights)
    tensors[FC1] = dataclasses.replace(tensors[FC1], read=fail)
    (tmp_path / "copy").mkdir()
    assert_refused(lambda: write_weights(tmp_path / "copy", tensors), "bad tensor")
    assert not (tmp_path / "copy" / ".metadata").exists()
