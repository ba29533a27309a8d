"""A conversion's memory is that of a few tensors, whatever the model's size."""

import pytest

from tests.helpers.conversions import measure
from tests.helpers.large import write_random_xglm

pytestmark = pytest.mark.slow
SHAPE = {"vocab_size": 2048, "d_model": 1024, "ffn_dim": 4096, "num_layers": 26, "attention_heads": 8}
MODEL_BYTES = 659_000_000  # of which the largest tensors have 8 MiB


def test_no_conversion_holds_the_model(tmp_path):
    hf = write_random_xglm(tmp_path / "hf", **SHAPE)
    assert (hf / "model.safetensors").stat().st_size > MODEL_BYTES
    steps = {"import_hf": hf, "export_hf": tmp_path / "import_hf", "export_metaseq": tmp_path / "import_hf"}
    libraries = measure("nothing", hf, tmp_path / "nothing").peak_bytes
    taken = {
        step: measure(step, source, tmp_path / step).peak_bytes - libraries for step, source in steps.items()
    }
    assert {step: size for step, size in taken.items() if size > MODEL_BYTES / 2} == {}
    assert (tmp_path / "export_hf/model.safetensors").read_bytes() == (hf / "model.safetensors").read_bytes()
