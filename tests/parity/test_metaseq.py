"""metaseq and fairseq files -> our model: the very model that their Hugging Face folder becomes."""

import copy
import logging
from argparse import Namespace

import pytest
import torch

from tests.helpers.hostile import RunsCode
from tests.helpers.metaseq_files import (
    RECIPE,
    assert_refused,
    metaseq_tensors,
    with_imported,
    write_consolidated,
    write_parts,
)
from tests.helpers.random_opt import LIKE_350M, NARROW, PRE_NORM, random_opt
from tests.helpers.random_xglm import GELU, RELU, random_xglm
from tests.helpers.weights import assert_same_model
from xelm_nemo.checkpoint.facts import load_facts
from xelm_nemo.checkpoint.hf import import_hf
from xelm_nemo.checkpoint.metaseq import import_metaseq, read_metaseq_shape

FC1, NORM = "decoder.layers.1.fc1.weight", "decoder.layers.0.final_layer_norm.bias"
VARIANTS = {
    "xglm_gelu": (random_xglm, GELU),
    "xglm_relu_8x": (random_xglm, RELU),
    "opt_pre_norm": (random_opt, {**PRE_NORM, "num_attention_heads": 4}),
    "opt_like_350m": (random_opt, LIKE_350M),
    "opt_narrow_gelu": (random_opt, NARROW),
}


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request, tmp_path_factory):
    """A model, and the folder that its Hugging Face folder was imported to."""
    return with_imported(*VARIANTS[request.param], tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return random_xglm(**RELU)


@pytest.mark.parametrize("form", ["separate", "fused", "namespace", "two_parts", "two_separate_parts"])
def test_file_becomes_the_same_model_as_the_hugging_face_folder(variant, tmp_path, form):
    model, expected = variant
    source = write(model, tmp_path, form)
    import_metaseq(source, tmp_path / "model", RECIPE, tokenizer="words")
    assert_same_model(tmp_path / "model", expected)
    assert read_metaseq_shape(source) == load_facts(expected).shape


def write(model, folder, form):
    if "parts" in form:
        return write_parts(model, folder / "parts", 2, fused=form == "two_parts")
    return write_consolidated(
        model, folder / "consolidated.pt", fused=form == "fused", namespace=form == "namespace"
    )


def test_four_parts_are_joined_in_the_order_of_their_numbers(tmp_path):
    torch.manual_seed(0)
    model = random_opt(**{**PRE_NORM, "num_attention_heads": 4})
    source = write_parts(model, tmp_path / "parts", 4, prefix="reshard")
    import_metaseq(source, tmp_path / "model", RECIPE, tokenizer="words")
    import_metaseq(write(model, tmp_path, "separate"), tmp_path / "whole", RECIPE, tokenizer="words")
    assert_same_model(tmp_path / "model", tmp_path / "whole")


def test_folder_with_one_consolidated_file_is_that_file(small, tmp_path):
    path = write_consolidated(small, tmp_path / "consolidated.pt")
    assert read_metaseq_shape(tmp_path) == read_metaseq_shape(path)


def test_model_knows_its_file_and_its_tokenizer(small, tmp_path):
    path = write_consolidated(small, tmp_path / "xglm.pt")
    import_metaseq(path, tmp_path / "model", RECIPE, tokenizer="words")
    facts = load_facts(tmp_path / "model")
    assert (facts.name, facts.parent, facts.tokenizer) == ("xglm", str(path), "words")


def test_half_precision_becomes_float32_bit_for_bit(small, tmp_path):
    def halve(tensors):
        return {name: tensor.half() for name, tensor in tensors.items()}

    source = write_consolidated(small, tmp_path / "half.pt", change=halve)
    import_metaseq(source, tmp_path / "model", RECIPE, tokenizer="words")
    copy.deepcopy(small).half().save_pretrained(tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "imported", RECIPE)
    assert_same_model(tmp_path / "model", tmp_path / "imported")
    assert load_facts(tmp_path / "model").dtype == "fp32"


def test_tensors_that_hold_no_weights_are_named_as_dropped(small, tmp_path, caplog):
    path = write_consolidated(small, tmp_path / "xglm.pt")
    with caplog.at_level(logging.INFO):
        import_metaseq(path, tmp_path / "model", RECIPE, tokenizer="words")
    assert "decoder.version, decoder.embed_positions._float_tensor" in caplog.text


def test_settings_that_newer_versions_leave_out_are_seen_in_the_weights(tmp_path):
    for settings in (PRE_NORM, LIKE_350M):
        model = random_opt(**settings)
        given = write_consolidated(model, tmp_path / "given.pt")
        left_out = write_consolidated(model, tmp_path / "left_out.pt", decoder_normalize_before=None)
        assert read_metaseq_shape(left_out) == read_metaseq_shape(given)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("place", ["model", "cfg", "extra_state"])
def test_file_that_would_run_code_does_not(small, tmp_path, place, zipped):
    content = torch.load(write_consolidated(small, tmp_path / "good.pt"), weights_only=True)
    content[place] = {"model": RunsCode(tmp_path / "ran")}
    torch.save(content, tmp_path / "bad.pt", _use_new_zipfile_serialization=zipped)
    assert_refused(tmp_path / "bad.pt", tmp_path, "bad.pt names io.open", "only tensors, plain values")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kept", [0, 5, 200, 20_000], ids=lambda kept: f"{kept}_bytes")
def test_truncated_file_is_named(small, tmp_path, kept):
    path = write_consolidated(small, tmp_path / "short.pt")
    path.write_bytes(path.read_bytes()[:kept])
    assert_refused(path, tmp_path, "short.pt cannot be read")


def spoil(tensors):
    tensors[FC1][-1, -1] = torch.nan
    return tensors


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda t: t | {"decoder.extra": torch.ones(1)}, "no XGLM or OPT has: decoder.extra"),
        (lambda t: t | {"decoder.layers.7.fc1.bias": torch.ones(2)}, "unknown: model.layers.7.fc1.bias"),
        (lambda t: {k: v for k, v in t.items() if k != FC1}, "missing: model.layers.1.fc1.weight"),
        (lambda t: t | {FC1: torch.ones(256, 40)}, "fc1.weight has shape [256, 40], expected [256, 32]"),
        (lambda t: t | {FC1: t[FC1].to(torch.int8)}, f"{FC1} is torch.int8"),
        (lambda t: t | {FC1: "text"}, f"{FC1} is str"),
        (lambda t: t | {FC1: t[FC1].to_sparse()}, f"{FC1} is torch.sparse_coo"),
        (lambda t: t | {FC1: t[FC1].to("meta")}, f"{FC1} is meta, without numbers"),
        (lambda t: t | {7: t[FC1]}, "7 is no name of a tensor"),
        (spoil, "model.layers.1.fc1.weight holds a number that is not finite"),
        (
            lambda t: t | {"decoder.layers.0.self_attn.qkv_proj.bias": torch.ones(96)},
            "and another tensor both give model.layers.0.self_attn.",
        ),
        (
            lambda t: t | {"decoder.output_projection.weight": t["decoder.embed_tokens.weight"] + 1},
            "lm_head.weight differs from model.embed_tokens.weight",
        ),
        (lambda t: {}, "has no weights under 'model'"),
        (lambda t: {FC1: t[FC1]}, "has no table decoder.embed_tokens.weight"),
    ],
    ids=[
        "extra",
        "layer",
        "missing",
        "shape",
        "int8",
        "text",
        "sparse",
        "meta",
        "number",
        "nan",
        "twice",
        "untied",
        "empty",
        "no_table",
    ],
)
def test_wrong_tensor_is_named(small, tmp_path, change, said):
    assert_refused(write_consolidated(small, tmp_path / "bad.pt", change=change), tmp_path, "bad.pt", said)


def test_fused_projection_that_is_not_three_is_named(small, tmp_path):
    def shorten(tensors):
        tensors["decoder.layers.0.self_attn.qkv_proj.bias"] = torch.ones(95)
        return tensors

    path = write_consolidated(small, tmp_path / "bad.pt", fused=True, change=shorten)
    assert_refused(path, tmp_path, "qkv_proj.bias has shape [95], which is not 3 of one kind")


@pytest.mark.parametrize(
    "setting, said",
    [
        ({"decoder_embed_dim": None}, "decoder_embed_dim=None is not a positive whole number"),
        ({"decoder_layers": "two"}, "decoder_layers='two'"),
        ({"max_target_positions": None}, "max_target_positions=None"),
        ({"activation_fn": "gelu_accurate"}, "activation_fn='gelu_accurate' is not one of ['gelu', 'relu']"),
        ({"no_scale_embedding": True}, "no_scale_embedding=True is not supported, only False"),
        ({"decoder_normalize_before": False}, "decoder_normalize_before=False is not supported, only True"),
        ({"decoder_input_dim": 16}, "decoder_input_dim=16 is not supported, only 32"),
        ({"share_decoder_input_output_embed": False}, "share_decoder_input_output_embed=False"),
        ({"scale_heads": True}, "scale_heads=True is not supported"),
        ({"dropout": 1.5}, "dropout=1.5"),
        ({"scale_attn": torch.zeros(2)}, "scale_attn is a tensor"),
        ({"decoder_learned_pos": torch.zeros(2)}, "decoder_learned_pos is a tensor"),
        ({"decoder_layers": 1}, "unknown: model.layers.1."),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_setting_that_does_not_fit_is_named(small, tmp_path, setting, said):
    assert_refused(write_consolidated(small, tmp_path / "bad.pt", **setting), tmp_path, "bad.pt", said)


def test_learned_positions_with_scaled_embeddings_are_refused(tmp_path):
    path = write_consolidated(random_opt(**PRE_NORM), tmp_path / "bad.pt", no_scale_embedding=None)
    assert_refused(path, tmp_path, "no_scale_embedding=False is not supported, only True")


def test_file_without_settings_is_refused(small, tmp_path):
    torch.save({"model": metaseq_tensors(small), "cfg": None, "args": None}, tmp_path / "bad.pt")
    assert_refused(tmp_path / "bad.pt", tmp_path, "neither cfg['model'] nor args")


def test_place_without_a_checkpoint_is_named(tmp_path):
    assert_refused(tmp_path, tmp_path, f"seed_model.path={str(tmp_path)!r} is no checkpoint; give a")
    assert_refused(tmp_path / "no.pt", tmp_path, "no.pt' is no checkpoint")


def rewrite(path, change):
    with torch.serialization.safe_globals([Namespace]):
        content = torch.load(path, weights_only=True)
    torch.save(content | {"model": change(content["model"])}, path)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda t: t | {NORM: t[NORM] + 1}, f"{NORM} differs between the parts"),
        (
            lambda t: {k: v for k, v in t.items() if k != NORM},
            f"part 1 has other tensors than part 0: missing: {NORM}",
        ),
        (lambda t: t | {FC1: torch.ones(128, 31)}, "fc1.weight has shape [128, 32], [128, 31], which cannot"),
    ],
    ids=["differs", "missing", "shape"],
)
def test_parts_that_do_not_fit_together_are_named(small, tmp_path, change, said):
    folder = write_parts(small, tmp_path / "parts", 2)
    rewrite(folder / "checkpoint_last-model_part-1.pt", change)
    assert_refused(folder, tmp_path, said)


def test_part_that_is_missing_or_there_twice_is_named(small, tmp_path):
    folder = write_parts(small, tmp_path / "parts", 2)
    write_parts(small, folder, 1, prefix="checkpoint_best")
    assert_refused(folder, tmp_path, "checkpoint_last-model_part-0.pt are both part 0")
    for path in folder.glob("*-model_part-0.pt"):
        path.unlink()
    assert_refused(folder, tmp_path, "has the model parts [1]")
    assert_refused(folder / "checkpoint_last-model_part-1.pt", tmp_path, "is one part", "give its folder")
