"""FSDP's shards of metaseq -> our model: the very model that their Hugging Face folder becomes."""

from argparse import Namespace

import pytest
import torch

from tests.helpers.hostile import RunsCode
from tests.helpers.metaseq_files import RECIPE, assert_refused, with_imported
from tests.helpers.metaseq_shards import write_flat_parts, write_shards
from tests.helpers.random_opt import LIKE_350M, PRE_NORM, random_opt
from tests.helpers.random_xglm import GELU, RELU, random_xglm
from tests.helpers.weights import assert_same_model
from xelm_nemo.checkpoint.hf import import_hf
from xelm_nemo.checkpoint.metaseq import import_metaseq, read_metaseq_shape

VARIANTS = {
    "xglm": (random_xglm, {**GELU, "attention_heads": 4}),
    "opt": (random_opt, {**PRE_NORM, "num_attention_heads": 4}),
    "opt_like_350m": (random_opt, {**LIKE_350M, "num_attention_heads": 4}),
}
LAYER = "decoder.layers.1.flat_param_0"


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request, tmp_path_factory):
    """A model, and the folder that its Hugging Face folder was imported to."""
    root, (make, settings) = tmp_path_factory.mktemp(request.param), VARIANTS[request.param]
    return with_imported(make, settings, root)


@pytest.fixture(scope="module", params=["xglm", "opt"])
def seed(request, tmp_path_factory):
    return with_imported(*VARIANTS[request.param], tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def opt(tmp_path_factory):
    return with_imported(*VARIANTS["opt"], tmp_path_factory.mktemp("opt"))


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return random_xglm(**RELU)


@pytest.mark.parametrize("wrapped", [True, False], ids=["layer_by_layer", "in_one"])
@pytest.mark.parametrize(
    "num_parts, num_shards", [(None, 1), (None, 2), (1, 3), (2, 1), (2, 2), (2, 5), (4, 2), (1, 16)]
)
def test_shards_become_the_same_model_as_the_hugging_face_folder(
    variant, tmp_path, num_parts, num_shards, wrapped
):
    model, expected = variant
    source = write_shards(model, tmp_path / "shards", num_parts, num_shards, wrapped=wrapped)
    import_metaseq(source, tmp_path / "model", RECIPE, tokenizer="words")
    assert_same_model(tmp_path / "model", expected)


def test_sizes_are_read_from_shards(opt, tmp_path):
    model, _ = opt
    shape = read_metaseq_shape(write_shards(model, tmp_path / "shards", 2, 2))
    assert shape == read_metaseq_shape(write_shards(model, tmp_path / "more", 4, 3))
    assert (shape.architecture, shape.hidden_size, shape.num_layers) == ("opt", 48, 3)


def test_half_precision_becomes_float32_bit_for_bit(opt, tmp_path):
    model, _ = opt
    source = write_shards(model, tmp_path / "shards", 2, 3, half=True)
    import_metaseq(source, tmp_path / "model", RECIPE, tokenizer="words")
    torch.manual_seed(0)
    make, settings = VARIANTS["opt"]
    half = make(**settings).half()
    half.save_pretrained(tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "imported", RECIPE)
    assert_same_model(tmp_path / "model", tmp_path / "imported")


@pytest.mark.parametrize("wrapped", [True, False], ids=["layer_by_layer", "in_one"])
@pytest.mark.parametrize("num_parts", [1, 2, 4])
def test_flat_parts_as_opt_is_published_become_the_same_model(seed, tmp_path, num_parts, wrapped):
    model, expected = seed
    source = write_flat_parts(model, tmp_path / "parts", num_parts, wrapped=wrapped)
    import_metaseq(source, tmp_path / "model", RECIPE, tokenizer="words")
    assert_same_model(tmp_path / "model", expected)


def test_flat_parts_of_one_shard_each_are_parts(opt, tmp_path):
    model, expected = opt
    source = write_flat_parts(model, tmp_path / "parts", 2)
    for path in source.glob("*.pt"):
        path.rename(path.with_name(f"{path.stem}-shard0.pt"))
    import_metaseq(source, tmp_path / "model", RECIPE, tokenizer="words")
    assert_same_model(tmp_path / "model", expected)


def path_of(folder, part, shard):
    return folder / f"checkpoint_last-model_part-{part}-shard{shard}.pt"


def rewrite(path, change):
    """Change what a file holds, in place."""
    with torch.serialization.safe_globals([Namespace]):
        content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


def described(content, module):
    """What the metadata says of the flat tensor of a module, by its place among the modules."""
    return content["shard_metadata"]["param_metadata"][module]["params"]["flat_param_0"]


@pytest.mark.parametrize("lost", [(0, 0), (0, 1), (1, 0), (1, 2)])
def test_missing_shard_is_named(small, tmp_path, lost):
    folder = write_shards(small, tmp_path / "shards", 2, 3)
    path_of(folder, *lost).unlink()
    assert_refused(folder, tmp_path, f"{folder} has no shard {lost[1]} of model part {lost[0]}")


def test_last_shard_that_no_other_part_has_either_is_missed_by_its_numbers(small, tmp_path):
    folder = write_shards(small, tmp_path / "shards", 2, 3)
    for part in (0, 1):
        path_of(folder, part, 2).unlink()
    said = "flat_param_0 has", "numbers in 2 shards, and the tensors in it"
    assert_refused(folder, tmp_path, f"{path_of(folder, 0, 0)}: ", *said)


def test_shard_that_is_there_twice_is_named(small, tmp_path):
    folder = write_shards(small, tmp_path / "shards", 1, 2)
    write_shards(small, folder, 1, 1, prefix="checkpoint_1_100")
    said = "checkpoint_1_100-model_part-0-shard0.pt and checkpoint_last-model_part-0-shard0.pt"
    assert_refused(folder, tmp_path, f"{said} are both part 0, shard 0")


def test_one_shard_is_no_model(small, tmp_path):
    folder = write_shards(small, tmp_path / "shards", None, 2)
    assert_refused(folder / "checkpoint_last-shard1.pt", tmp_path, "is one part of a model; give its folder")


def test_shards_of_another_number_are_named(small, tmp_path):
    folder = write_shards(small, tmp_path / "shards", 1, 2)
    write_shards(small, tmp_path / "others", 1, 3)
    path_of(tmp_path / "others", 0, 1).rename(path_of(folder, 0, 1))
    assert_refused(folder, tmp_path, "numbers in 2 shards, and the tensors in it")


def spoil_numels(content):
    described(content, 2)["numels"][0] += 1


def twice(content):
    described(content, 2)["names"][1] = described(content, 2)["names"][0]


def without_metadata(content):
    del content["shard_metadata"]


def without_flat_tensor(content):
    del content["model"][LAYER]


def without_names(content):
    del described(content, 2)["names"]


def short_names(content):
    described(content, 2)["names"].pop()


def huge_padding(content):
    described(content, 2)["padding"] = 10**9


def negative_padding(content):
    described(content, 2)["padding"] = -1


def no_list(content):
    content["shard_metadata"] = {"param_metadata": 7}


def no_source(content):
    content["shard_metadata"]["param_metadata"][0]["shared_param_info"] = [("decoder.none", "decoder.other")]


def other_dtype(content):
    content["model"][LAYER] = content["model"][LAYER].half()


def other_shape(content):
    described(content, 2)["shapes"][2] = torch.Size([16, 64])


@pytest.mark.parametrize(
    "change, said",
    [
        (spoil_numels, "layers.1.self_attn.qkv_proj.weight has 3073 numbers in shape [96, 32]"),
        (twice, "decoder.layers.1.self_attn.qkv_proj.weight is there twice"),
        (without_metadata, "no shard_metadata"),
        (without_flat_tensor, f"has no {LAYER}"),
        (without_names, "no 'names'"),
        (short_names, f"{LAYER} has 11 names, 12 shapes and 12 sizes"),
        (huge_padding, f"{LAYER} has a padding of 1000000000"),
        (negative_padding, f"{LAYER} has a padding of -1"),
        (no_list, "its shard_metadata is not what FSDP writes"),
        (no_source, "'decoder.none'"),
        (other_shape, "layers.1.self_attn.out_proj.weight has shape [16, 64]"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_metadata_that_does_not_add_up_is_named(small, tmp_path, change, said):
    folder = write_shards(small, tmp_path / "shards", 1, 2)
    for number in (0, 1):
        rewrite(path_of(folder, 0, number), change)
    assert_refused(folder, tmp_path, said)


@pytest.mark.parametrize("change", [other_shape, other_dtype, without_metadata, without_flat_tensor])
def test_shard_that_differs_from_the_first_is_named(small, tmp_path, change):
    folder = write_shards(small, tmp_path / "shards", 1, 3)
    rewrite(path_of(folder, 0, 2), change)
    assert_refused(folder, tmp_path, str(path_of(folder, 0, 2)))


def test_tensor_that_no_metadata_names_is_named(small, tmp_path):
    folder = write_shards(small, tmp_path / "shards", 1, 1)
    rewrite(path_of(folder, 0, 0), lambda content: content["model"].update(flat_param_1=torch.ones(5)))
    assert_refused(folder, tmp_path, "no XGLM or OPT has: flat_param_1")


def test_number_that_is_not_finite_is_named_with_its_file_and_its_tensor(small, tmp_path):
    def spoil(content):
        content["model"][LAYER][0] = torch.nan

    folder = write_shards(small, tmp_path / "shards", 1, 2)
    rewrite(path_of(folder, 0, 0), spoil)
    said = (
        f"{path_of(folder, 0, 0)}: model.layers.1.self_attn.",
        "_proj.weight holds a number that is not finite",
    )
    assert_refused(folder, tmp_path, *said)


def test_metadata_that_would_run_code_does_not(small, tmp_path):
    def plant(content):
        content["shard_metadata"]["param_metadata"][0]["no_broadcast_optim_state"] = RunsCode(
            tmp_path / "ran"
        )

    folder = write_shards(small, tmp_path / "shards", 1, 2)
    rewrite(path_of(folder, 0, 1), plant)
    assert_refused(folder, tmp_path, f"{path_of(folder, 0, 1)} names io.open", "only tensors, plain values")
    assert not (tmp_path / "ran").exists()


def other_layers(content):
    content["cfg"]["model"].decoder_layers = 2


def other_width(content):
    content["cfg"]["model"].decoder_ffn_embed_dim = 190


def no_width(content):
    content["cfg"]["model"].decoder_embed_dim = None


def one_row_more(content):
    content["model"]["flat_param_0"] = torch.ones(content["model"]["flat_param_0"].numel() + 5)


@pytest.mark.parametrize(
    "change, said",
    [
        (other_layers, "no XGLM or OPT has: decoder.layers.2.flat_param_0"),
        (other_width, "decoder.layers.0.flat_param_0 has"),
        (no_width, "decoder_embed_dim=None is not a positive whole number"),
        (one_row_more, "flat_param_0 has"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_flat_part_that_its_settings_do_not_describe_is_named(opt, tmp_path, change, said):
    folder = write_flat_parts(opt[0], tmp_path / "parts", 2)
    for path in folder.glob("*.pt"):
        rewrite(path, change)
    assert_refused(folder, tmp_path, said)


def test_flat_file_without_parts_is_refused(opt, tmp_path):
    folder = write_flat_parts(opt[0], tmp_path / "parts", 1)
    path = (folder / "reshard-model_part-0.pt").rename(tmp_path / "reshard.pt")
    assert_refused(path, tmp_path, "reshard.pt has flattened tensors and no shard_metadata")
