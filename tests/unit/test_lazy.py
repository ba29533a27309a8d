"""Tensors that are made together and read one by one."""

import torch

from xelm_nemo.checkpoint.lazy import Batch, tensors_of


def test_a_batch_is_made_once_for_all_its_tensors():
    made = []

    def make():
        made.append(True)
        return {name: torch.full((2,), float(value)) for value, name in enumerate("qkv")}

    tensors = tensors_of(Batch(dict.fromkeys("qkv", (2,)), torch.float32, make), "file")
    values = {name: tensor.read().tolist() for name, tensor in tensors.items()}
    assert values == {"q": [0.0, 0.0], "k": [1.0, 1.0], "v": [2.0, 2.0]}
    assert len(made) == 1
    assert tensors["k"].read().tolist() == [1.0, 1.0]  # every read gives the tensor, also the second
