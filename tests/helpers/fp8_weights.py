"""Weights in FP8 where there is no Transformer Engine: matrices of layers rounded to FP8 at every update."""

import contextlib

import torch
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from tests.helpers import megatron_cpu
from tests.helpers.weights import assert_same_tensors
from xelm_nemo.checkpoint import store
from xelm_nemo.checkpoint.masters import is_matrix


@contextlib.contextmanager
def weights_in_fp8():
    """Have models that are built and trained in the block keep their layers' matrices so.

    They are still tensors of BF16, with values of FP8 at scale 1; their masters are whatever they are.
    """
    build, renew = store.build_model, DistributedOptimizer._copy_main_params_to_model_params

    def build_model(*args, **kwargs):
        model = build(*args, **kwargs)
        model.config.fp8_param = True
        return model

    def renew_and_round(optimizer):
        renew(optimizer)
        for model in optimizer.model_chunks:
            for name, parameter in model.named_parameters():
                if is_matrix(name):
                    parameter.data.copy_(as_fp8(parameter.data))

    store.build_model, DistributedOptimizer._copy_main_params_to_model_params = build_model, renew_and_round
    try:
        yield
    finally:
        store.build_model, DistributedOptimizer._copy_main_params_to_model_params = build, renew


def as_fp8(tensor):
    """The nearest numbers of FP8, E4M3 at scale 1."""
    return tensor.to(torch.float8_e4m3fn).to(tensor.dtype)


def masters(folder, iteration):
    """Name -> float32 master weight, of a job's checkpoint."""
    return megatron_cpu.optimizer_state(folder, iteration, "param")


def model_weights(folder):
    """Name -> weight, of a model folder."""
    tensors = megatron_cpu.checkpoint_tensors(folder / "weights")
    return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}


def assert_model_is_the_masters(folder, iteration):
    """Fail unless a job's finished model is its last checkpoint's masters, rounded to BF16."""
    rounded = {name: tensor.bfloat16() for name, tensor in masters(folder, iteration).items()}
    assert_same_tensors(model_weights(folder / "model"), rounded)


def train_in_turn(folders, ports):
    """What each rank does: train jobs one after another, with weights so."""
    with weights_in_fp8():
        megatron_cpu.train_in_turn(folders, ports)
