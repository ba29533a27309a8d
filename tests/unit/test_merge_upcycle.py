"""Dense models made sparse compute what they computed before."""

import dataclasses
import os

import pytest
import torch

from tests.helpers.megatron_cpu import VOCAB_SIZE, write_seed_model
from xelm_nemo import parallel
from xelm_nemo.artifacts import Recipe
from xelm_nemo.checkpoint.distributed import open_weights
from xelm_nemo.checkpoint.facts import WEIGHTS, load_facts
from xelm_nemo.errors import CheckpointError, ConfigError
from xelm_nemo.merge.upcycle import GateStart, sparse_shape, upcycle_models
from xelm_nemo.model.config import ModelConfig, ParallelConfig, SparseConfig, num_parameters
from xelm_nemo.model.flops import training_flops

SHAPE = ModelConfig(
    num_layers=4,
    hidden_size=16,
    ffn_hidden_size=32,
    num_attention_heads=2,
    max_position_embeddings=16,
    init_method_std=0.2,
)
RECIPE = Recipe("model", {})


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Two different models, and the first again."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(["a", "b", "c"]):
        write_seed_model(folder / name, SHAPE, seed=1 + seed % 2)
    return {name: folder / name for name in ("a", "b", "c")}


def read_weights(folder):
    """Each layer's tensors by themselves, however they are stored."""
    return {name: tensor.read() for name, tensor in open_weights(folder / WEIGHTS).items()}


def logits(folder):
    from xelm_nemo.checkpoint import store

    tokens = torch.randint(0, VOCAB_SIZE, (3, 16), generator=torch.Generator().manual_seed(3))
    with parallel.model_parallel(), torch.no_grad():
        return store.load_model(folder, ParallelConfig()).eval().logits(tokens)


def upcycled(models, output, **settings):
    gate = settings.pop("gate", GateStart())
    upcycle_models(models, output, RECIPE, gate=gate, **{"num_moe_experts": 4} | settings)
    return output


@pytest.mark.parametrize("architecture", ["xglm", "opt"])
@pytest.mark.parametrize("topk, init", [(4, "normal"), (2, "uniform")])
def test_an_upcycled_model_gives_the_dense_models_logits(tmp_path, architecture, topk, init):
    shape = dataclasses.replace(SHAPE, architecture=architecture)
    write_seed_model(tmp_path / "dense", shape)
    gate = GateStart(init)
    found = upcycled({"dense": tmp_path / "dense"}, tmp_path / "sparse", moe_router_topk=topk, gate=gate)
    torch.testing.assert_close(logits(found), logits(tmp_path / "dense"), rtol=0, atol=1e-5)


def test_equal_experts_made_one_model_give_their_logits(models, tmp_path):
    found = upcycled({"a": models["a"], "c": models["c"]}, tmp_path / "btx", num_moe_experts=2)
    torch.testing.assert_close(logits(found), logits(models["a"]), rtol=0, atol=1e-5)


def test_every_second_layer_has_moe_experts_and_the_others_are_as_they_were(models, tmp_path):
    found = read_weights(upcycled({"a": models["a"]}, tmp_path / "sparse"))
    dense = read_weights(models["a"])
    gates = {name for name in found if name.endswith("router.weight")}
    assert gates == {f"decoder.layers.{layer}.mlp.router.weight" for layer in (1, 3)}
    assert not any("router.bias" in name for name in found)
    same = [name for name in dense if name in found]
    assert all(torch.equal(found[name], dense[name]) for name in same)
    assert len(dense) - len(same) == 2 * 6, "two products and a norm of two layers"
    experts = found["decoder.layers.3.mlp.experts.experts.linear_fc2.weight"]
    assert experts.shape == (4, 16, 32)
    assert all(torch.equal(one, dense["decoder.layers.3.mlp.linear_fc2.weight"]) for one in experts)


def test_a_set_gives_each_moe_expert_one_models_part_and_the_average_of_the_rest(models, tmp_path):
    pair = {"a": models["a"], "b": models["b"]}
    found = read_weights(upcycled(pair, tmp_path / "btx", num_moe_experts=2))
    a, b = read_weights(models["a"]), read_weights(models["b"])
    name = "decoder.layers.1.mlp.linear_fc1.weight"
    experts = found["decoder.layers.1.mlp.experts.experts.linear_fc1.weight"]
    assert torch.equal(experts[0], a[name]) and torch.equal(experts[1], b[name])
    for name in ("decoder.layers.0.mlp.linear_fc1.weight", "embedding.word_embeddings.weight"):
        torch.testing.assert_close(found[name], ((a[name].double() + b[name].double()) / 2).float())


def test_what_is_known_of_the_model_says_that_it_is_sparse(models, tmp_path):
    facts = load_facts(upcycled({"a": models["a"]}, tmp_path / "sparse", moe_aux_loss_coeff=0.5))
    assert facts.shape == SparseConfig(**dataclasses.asdict(SHAPE), num_moe_experts=4, moe_aux_loss_coeff=0.5)


def test_gates_are_the_same_in_every_run_and_differ_between_layers():
    shape = sparse_shape(SHAPE, num_moe_experts=4)
    gate = GateStart("uniform", seed=7)
    assert torch.equal(gate.weights(1, shape), gate.weights(1, shape))
    assert not torch.equal(gate.weights(1, shape), gate.weights(3, shape))
    drawn = gate.weights(1, shape)
    assert drawn.min() >= 0 and drawn.max() < 1


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"moe_layer_freq": 3}, r"upcycle.moe_layer_freq=3 does not divide model.num_layers=4; use one of"),
        ({"moe_router_topk": 5}, r"upcycle.moe_router_topk=5 is more than upcycle.num_moe_experts=4"),
        ({"moe_expert_capacity_factor": 2.5}, r"=2.5 leaves room for every token .*; set it to null"),
        (
            {"num_moe_experts": 7, "moe_router_topk": 3, "moe_expert_capacity_factor": 7 / 3},
            r"=2.33333 leaves room for every token .*; set it to null",
        ),
    ],
)
def test_sparse_shapes_that_cannot_be_are_refused(models, tmp_path, settings, said):
    with pytest.raises(ConfigError, match=said):
        upcycled({"a": models["a"]}, tmp_path / "sparse", **settings)
    assert os.listdir(tmp_path) == []


def test_opt_350m_whose_norms_come_last_is_refused(tmp_path):
    shape = dataclasses.replace(SHAPE, architecture="opt", post_layernorm=True, word_embed_proj_dim=8)
    write_seed_model(tmp_path / "dense", shape)
    with pytest.raises(
        ConfigError, match=r"model.post_layernorm=true .* use a seed model other than OPT-350M"
    ):
        upcycled({"dense": tmp_path / "dense"}, tmp_path / "sparse")
    assert os.listdir(tmp_path) == ["dense"]


def test_experts_of_different_shapes_are_refused(models, tmp_path):
    write_seed_model(tmp_path / "other", dataclasses.replace(SHAPE, ffn_hidden_size=48))
    with pytest.raises(CheckpointError, match=r"a and other differ in ffn_hidden_size \(32, 48\)"):
        upcycled({"a": models["a"], "other": tmp_path / "other"}, tmp_path / "btx", num_moe_experts=2)


def test_a_sparse_model_is_not_upcycled_again(models, tmp_path):
    once = upcycled({"a": models["a"]}, tmp_path / "once")
    with pytest.raises(CheckpointError, match="has 4 moe_experts already; give dense models"):
        upcycled({"once": once}, tmp_path / "twice")


def test_weights_are_counted_and_a_token_costs_as_many_moe_experts_as_it_has():
    from xelm_nemo.model.gpt import build_model

    shape = sparse_shape(SHAPE, num_moe_experts=4)
    with parallel.model_parallel():
        model = build_model(shape, ParallelConfig(), vocab_size=VOCAB_SIZE, dtype=torch.float32)
    assert num_parameters(shape, VOCAB_SIZE) == sum(p.numel() for p in model.parameters())
    gates_and_second_experts = 2 * (4 * 16 + 2 * 16 * 32)
    added = training_flops(shape, VOCAB_SIZE, 16) - training_flops(SHAPE, VOCAB_SIZE, 16)
    assert added == pytest.approx(6 * gates_and_second_experts)
