"""What is counted as the work of a step is what the literature counts."""

import pytest

from xelm_nemo.config.compose import compose
from xelm_nemo.model.flops import peak_flops, training_flops


def shape(name):
    return compose([f"model={name}", "corpus=udhr", "seed_model=random"]).model


GIGAFLOPS = {  # a token, at 2,048 tokens a sequence
    ("xglm_564m", 256_008): 3.69,
    ("xglm_1_7b", 256_008): 11.00,
    ("xglm_7_5b", 256_008): 46.56,
    ("opt_1_3b", 50_272): 8.47,
    ("opt_6_7b", 50_272): 41.50,
}


@pytest.mark.parametrize("name, words", GIGAFLOPS)
def test_operations_of_a_token(name, words):
    expected = pytest.approx(GIGAFLOPS[name, words], rel=2e-3)
    assert training_flops(shape(name), words, 2048) / 1e9 == expected


def test_narrow_embeddings_make_a_cheap_head():
    narrow = shape("opt_350m")
    head = training_flops(narrow, 50_272, 2048) - training_flops(narrow, 0, 2048)
    assert head == 6 * 50_272 * 512


@pytest.mark.parametrize(
    "name, peak", [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H200", 989e12), ("GTX", None)]
)
def test_peak_is_known_by_name(name, peak):
    assert peak_flops(name) == peak
