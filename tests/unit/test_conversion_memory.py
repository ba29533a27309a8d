"""A conversion's memory is that of a few tensors, whatever the model's size."""

import pytest
import torch

from tests.helpers.conversions import measure, taken
from tests.helpers.large import write_random_xglm
from tests.helpers.metaseq_files import write_consolidated
from tests.helpers.metaseq_shards import write_flat_parts, write_shards
from tests.helpers.nemo_files import write_nemo_checkpoint
from tests.helpers.weights import assert_same_weights

pytestmark = pytest.mark.slow
SHAPE = {"vocab_size": 2048, "d_model": 1024, "ffn_dim": 4096, "num_layers": 26, "attention_heads": 8}
MODEL_BYTES = 659_000_000  # of which the largest tensors have 8 MiB


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The model as Hugging Face has it, `hf`, and imported, `import_hf`."""
    root = tmp_path_factory.mktemp("large")
    hf = write_random_xglm(root / "hf", **SHAPE)
    assert (hf / "model.safetensors").stat().st_size > MODEL_BYTES
    measure("import_hf", hf, root / "import_hf")
    return root


def test_no_conversion_holds_the_model(folders, tmp_path):
    model = folders / "import_hf"
    steps = {"import_hf": folders / "hf", "export_hf": model, "export_metaseq": model}
    sizes = {step: taken(step, source, tmp_path / step) for step, source in steps.items()}
    assert {step: size for step, size in sizes.items() if size > MODEL_BYTES / 2} == {}
    ours, theirs = (place / "model.safetensors" for place in (tmp_path / "export_hf", folders / "hf"))
    assert ours.read_bytes() == theirs.read_bytes()


def test_import_from_nemo_does_not_hold_the_model(folders, tmp_path):
    source = write_nemo_checkpoint(folders / "import_hf", tmp_path / "nemo", vocab_size=SHAPE["vocab_size"])
    assert taken("import_nemo", source, tmp_path / "model") <= MODEL_BYTES / 2
    assert_same_weights(tmp_path / "model", folders / "import_hf")


@pytest.fixture(scope="module", params=["consolidated", "shards", "flat"])
def metaseq(request, folders):
    """The model as metaseq has it, in a file and in many."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folders / "hf", dtype=torch.bfloat16)
    place = folders / request.param
    if request.param == "consolidated":
        return write_consolidated(model, place.with_suffix(".pt"))
    if request.param == "shards":
        return write_shards(model, place, 2, 3)
    return write_flat_parts(model, place, 2, wrapped=False)


def test_import_from_metaseq_holds_no_more_than_the_mapped_file(folders, metaseq, tmp_path):
    assert taken("import_metaseq", metaseq, tmp_path / "model", kind="own_bytes") <= MODEL_BYTES / 2
    assert_same_weights(tmp_path / "model", folders / "import_hf")
