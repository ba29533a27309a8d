"""Our model -> metaseq's consolidated file: what came in so leaves so, bit for bit."""

import pytest
import torch

from tests.helpers.metaseq_files import write_consolidated, write_parts
from tests.helpers.variants import VARIANTS, random_variant
from tests.helpers.weights import assert_same_tensors
from xelm_nemo.artifacts import Recipe
from xelm_nemo.checkpoint.facts import load_facts
from xelm_nemo.checkpoint.metaseq import import_metaseq, read_metaseq_shape
from xelm_nemo.checkpoint.metaseq_export import export_metaseq

RECIPE = Recipe("model", {})


def read(path):
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("name", VARIANTS)
def test_consolidated_file_comes_back_bit_for_bit(name, tmp_path):
    path = write_consolidated(random_variant(name), tmp_path / "in.pt")
    import_metaseq(path, tmp_path / "model", RECIPE, tokenizer="words")
    export_metaseq(tmp_path / "model", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["consolidated.pt"]
    assert_same_tensors(read(tmp_path / "out/consolidated.pt")["model"], read(path)["model"])
    assert read_metaseq_shape(tmp_path / "out") == load_facts(tmp_path / "model").shape


def test_settings_are_a_plain_dictionary_with_those_that_came(tmp_path):
    path = write_consolidated(random_variant("opt_like_350m"), tmp_path / "in.pt")
    import_metaseq(path, tmp_path / "model", RECIPE, tokenizer="words")
    export_metaseq(tmp_path / "model", tmp_path / "out")
    found, given = (read(file)["cfg"]["model"] for file in (tmp_path / "out/consolidated.pt", path))
    assert type(found) is dict
    assert {key: found[key] for key in given} == given


def test_parts_become_the_file_that_they_are_parts_of(tmp_path):
    model = random_variant("xglm_relu_8x")
    import_metaseq(write_parts(model, tmp_path / "parts", 2), tmp_path / "model", RECIPE, tokenizer="words")
    export_metaseq(tmp_path / "model", tmp_path / "out")
    whole = read(write_consolidated(model, tmp_path / "in.pt"))["model"]
    assert_same_tensors(read(tmp_path / "out/consolidated.pt")["model"], whole)


def test_head_and_embedding_share_their_memory(tmp_path):
    path = write_consolidated(random_variant("xglm_relu_8x"), tmp_path / "in.pt")
    import_metaseq(path, tmp_path / "model", RECIPE, tokenizer="words")
    export_metaseq(tmp_path / "model", tmp_path / "out")
    tensors = read(tmp_path / "out/consolidated.pt")["model"]
    names = ("decoder.output_projection.weight", "decoder.embed_tokens.weight")
    assert len({tensors[name].data_ptr() for name in names}) == 1


def test_number_format_is_cast_when_asked(tmp_path):
    path = write_consolidated(random_variant("xglm_relu_8x"), tmp_path / "in.pt")
    import_metaseq(path, tmp_path / "model", RECIPE, tokenizer="words")
    export_metaseq(tmp_path / "model", tmp_path / "out", dtype="fp16")
    found, given = read(tmp_path / "out/consolidated.pt")["model"], read(path)["model"]
    for name, tensor in given.items():
        if not name.endswith(("version", "_float_tensor")):
            assert found[name].dtype == torch.float16
            assert torch.equal(found[name], tensor.half())
