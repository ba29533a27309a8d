"""Layers over pipeline stages, the head counted."""

import dataclasses

import pytest

from xelm_nemo.model.config import ModelConfig
from xelm_nemo.model.stages import head_in_layers, stage_layers

XGLM_1_7B = ModelConfig()
XGLM_7_5B = ModelConfig(num_layers=32, hidden_size=4096, ffn_hidden_size=16384, num_attention_heads=32)
OPT_350M = ModelConfig(hidden_size=1024, ffn_hidden_size=4096, word_embed_proj_dim=512, architecture="opt")


def test_head_of_xglm_1_7b_costs_as_much_as_nine_layers():
    assert head_in_layers(XGLM_1_7B, 256_008) == pytest.approx(9.6, abs=0.05)
    assert head_in_layers(XGLM_7_5B, 256_008) == pytest.approx(5.0, abs=0.05)
    assert head_in_layers(OPT_350M, 50_272) == pytest.approx(1.75, abs=0.05)


@pytest.mark.parametrize(
    ("shape", "stages", "expected"),
    [
        (XGLM_1_7B, 1, [24]),
        (XGLM_1_7B, 2, [17, 7]),
        (XGLM_1_7B, 4, [7, 8, 8, 1]),
        (XGLM_7_5B, 2, [19, 13]),
        (dataclasses.replace(XGLM_1_7B, num_layers=2), 2, [1, 1]),
        (dataclasses.replace(XGLM_1_7B, num_layers=5), 4, [2, 1, 1, 1]),
    ],
)
def test_stages_take_equally_long(shape, stages, expected):
    assert stage_layers(shape, 256_008, stages) == expected


@pytest.mark.parametrize("stages", [2, 3, 4, 5, 7])
@pytest.mark.parametrize("layers", [7, 12, 24, 31, 48])
def test_every_layer_is_on_one_stage_and_no_better_split_is_left(layers, stages):
    shape = dataclasses.replace(XGLM_1_7B, num_layers=layers)
    split = stage_layers(shape, 256_008, stages)
    assert sum(split) == layers and len(split) == stages and min(split) >= 1
    assert len(set(split[1:-1])) <= 1  # the form that Megatron knows
    head = head_in_layers(shape, 256_008)
    slowest = max(*split[:-1], split[-1] + head)
    for last in range(1, layers):
        rest = layers - last
        for each in range(1, rest + 1):
            first = rest - each * (stages - 2)
            if first >= 1:
                assert slowest <= max(first, each if stages > 2 else 0, last + head)
