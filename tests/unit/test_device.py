import subprocess
import sys

import pytest
import torch

from xelm_nemo import device

AFTER_DEVICE = """
import torch.utils.cpp_extension as compiler
def refuse(**kwargs):
    raise SystemExit(f"compiles {kwargs['name']}")
compiler.load_inline = compiler.load = refuse
import xelm_nemo.device
import megatron.core.inference.contexts.dynamic_context as user
assert user.has_unified_memory is False
"""
LEAN = """
import torch
compiled = []
torch.compile = lambda function: compiled.append(function.__name__) or function
import xelm_nemo.device
import megatron.core.transformer
from megatron.core.fusions.fused_bias_gelu import bias_gelu
assert compiled == [], compiled
x, bias = torch.randn(4, 8), torch.randn(8)
for _ in range(2):
    torch.testing.assert_close(bias_gelu(bias, x), torch.nn.functional.gelu(x + bias, approximate="tanh"))
assert compiled == ["bias_gelu"], compiled
"""
ENTERED = """
import torch
from xelm_nemo import device
device.enter(threads=1)
assert torch.zeros(2, device="cuda").device.type == "cpu"
assert torch.ones(2).cuda().type() == "torch.cuda.FloatTensor"
assert torch.get_num_threads() == 1
from megatron.core.tensor_parallel.random import CudaRNGStatesTracker
tracker = CudaRNGStatesTracker()
tracker.add("inside", 7)
torch.manual_seed(1)
expected = [torch.rand(3), torch.rand(3)]
torch.manual_seed(1)
outside = [torch.rand(3)]
with tracker.fork("inside"):
    inside = [torch.rand(3)]
outside.append(torch.rand(3))
with tracker.fork("inside"):
    inside.append(torch.rand(3))
assert all(a.equal(b) for a, b in zip(expected, outside, strict=True)), "the fork moved the outer generator"
torch.manual_seed(7)
assert all(a.equal(torch.rand(3)) for a in inside), "the fork does not go on where it was"
"""


def run_python(program):
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_importing_megatron_compiles_nothing():
    run_python(AFTER_DEVICE)


def test_importing_megatron_leaves_the_compiler_until_something_is_to_be_compiled():
    run_python(LEAN)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the stand-ins are for machines without CUDA")
def test_cuda_by_name_means_the_cpu_and_dropout_streams_stay_apart():
    run_python(ENTERED)


def test_device_counts_are_of_this_machine():
    assert device.cores() >= 1
    assert device.count() == torch.cuda.device_count()
