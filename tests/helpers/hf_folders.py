"""Hugging Face folders, compared."""

import json

from safetensors.torch import load_file

from tests.helpers.weights import assert_same_tensors


def hf_weights(folder):
    """Every tensor of a folder with one file of them."""
    return load_file(folder / "model.safetensors")


def assert_same_hf_weights(folder, expected):
    """Two folders hold the same tensors."""
    assert_same_tensors(hf_weights(folder), hf_weights(expected))


def assert_same_hf_settings(folder, expected):
    """A folder's config.json has every setting of another's."""
    found, wanted = (json.loads((place / "config.json").read_text()) for place in (folder, expected))
    # Who wrote the file, and the dtype's name in newer and in older versions.
    for config in (found, wanted):
        config.pop("transformers_version", None)
        config["dtype"] = config.pop("torch_dtype", None) or config["dtype"]
    assert {key: found.get(key) for key in wanted} == wanted
