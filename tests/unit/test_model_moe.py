"""Moe_experts that compute together give what they give one after another."""

import pytest
import torch
from torch import nn

from xelm_nemo import parallel
from xelm_nemo.model.config import ParallelConfig, SparseConfig
from xelm_nemo.model.transformer import transformer_config

SIZES = {"num_layers": 2, "hidden_size": 8, "ffn_hidden_size": 24, "num_attention_heads": 2}
COUNTS = [3, 0, 4, 1]  # tokens of each moe_expert; one has none


class Products(nn.Module):
    """What Transformer Engine's grouped linear layer does, with its names and arguments."""

    def __init__(self, num_gemms, in_features, out_features, *, bias, skip_bias_add, is_expert, **options):
        super().__init__()
        assert bias and is_expert and not skip_bias_add, "it is to add its bias itself"
        self.tp_size = 1
        for number in range(num_gemms):
            self.register_parameter(f"weight{number}", nn.Parameter(torch.empty(out_features, in_features)))
            self.register_parameter(f"bias{number}", nn.Parameter(torch.empty(out_features)))

    def forward(self, x, counts):
        parts = enumerate(torch.split(x, counts))
        weights = dict(self.named_parameters())
        made = [nn.functional.linear(part, weights[f"weight{i}"], weights[f"bias{i}"]) for i, part in parts]
        return torch.cat(made), None


def both(activation):
    """The same moe_experts of Megatron's local layers, and together."""
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
    from megatron.core.transformer.mlp import MLPSubmodules
    from megatron.core.transformer.moe.experts import SequentialMLP

    from xelm_nemo.model.layers import _with_bias, _with_own_output
    from xelm_nemo.model.moe import GroupedExperts

    shape = SparseConfig(**SIZES, num_moe_experts=4, activation=activation)
    config = transformer_config(shape, ParallelConfig(), vocab_size=64, dtype=torch.float32)
    groups = ProcessGroupCollection.use_mpu_process_groups()
    apart = MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=_with_own_output(RowParallelLinear))
    one_by_one = SequentialMLP(4, config, apart, groups)
    config.bias_dropout_fusion = True  # as with dropout on a GPU
    products = MLPSubmodules(linear_fc1=Products, linear_fc2=_with_bias(Products))
    together = GroupedExperts(4, config, products, groups)
    for parameter in one_by_one.parameters():
        nn.init.normal_(parameter)
    for name, tensor in named(one_by_one).items():
        dict(together.named_parameters())[name].data.copy_(tensor)
    assert config.bias_dropout_fusion, "attention goes on with it"
    return one_by_one, together


def named(one_by_one):
    """The parameters of moe_experts one after another, under the names of those together."""
    parts = ((name.split("."), tensor) for name, tensor in one_by_one.named_parameters())
    return {f"{part[2]}.{part[3]}{part[1]}": tensor for part, tensor in parts}


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_together_moe_experts_give_the_same_outputs_and_gradients(activation):
    tokens = torch.randn(sum(COUNTS), SIZES["hidden_size"])
    weights, back = torch.rand(len(tokens)), torch.randn_like(tokens)
    found = []
    with parallel.model_parallel():
        for experts in both(activation):
            x, w = tokens.clone().requires_grad_(), weights.clone().requires_grad_()
            output, bias = experts(x, torch.tensor(COUNTS), w)
            assert bias is None
            output.backward(back)
            parameters = dict(experts.named_parameters()) if found else named(experts)
            gradients = {name: parameter.grad for name, parameter in parameters.items()}
            found.append({"output": output, "tokens": x.grad, "weights": w.grad} | gradients)
    assert found[0].keys() == found[1].keys()
    for name, expected in found[0].items():
        torch.testing.assert_close(found[1][name], expected, msg=lambda text, name=name: f"{name}: {text}")


def test_forgotten_steps_are_not_in_the_balance():
    from xelm_nemo.model.gpt import build_model
    from xelm_nemo.model.moe import forget_balance, gate_balance

    shape = SparseConfig(**SIZES, num_moe_experts=4, moe_expert_capacity_factor=None)
    with parallel.model_parallel():
        model = build_model(shape, ParallelConfig(), vocab_size=64, dtype=torch.float32).train()
        tokens = torch.randint(64, (2, 8))
        model(tokens, None, None, labels=tokens)
        forget_balance(model)
        assert gate_balance(model, tensor_model_parallel_size=1) == {}
        model(tokens, None, None, labels=tokens)
        assert gate_balance(model, tensor_model_parallel_size=1)["moe_load_max"] >= 1
