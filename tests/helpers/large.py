"""Hugging Face folders too large to be built in memory, made tensor by tensor.

`python -m tests.helpers.large FOLDER 1.7B` writes an XGLM of that size in bfloat16.
"""

import sys
import zlib
from pathlib import Path

import torch

from xelm_nemo.checkpoint.lazy import Batch
from xelm_nemo.checkpoint.safetensors_files import write_safetensors

STD = 0.02  # of the published models' initialisation
XGLM = {
    "564M": {"d_model": 1024, "ffn_dim": 4096, "num_layers": 24, "attention_heads": 16},
    "1.7B": {"d_model": 2048, "ffn_dim": 8192, "num_layers": 24, "attention_heads": 16},
    "7.5B": {"d_model": 4096, "ffn_dim": 16384, "num_layers": 32, "attention_heads": 32},
}


def write_random_xglm(folder, *, dtype=torch.bfloat16, max_shard_bytes=5_000_000_000, **settings):
    """A folder as `save_pretrained` writes it, every weight drawn at random, a generator for each tensor."""
    from transformers import XGLMConfig, XGLMForCausalLM

    config = XGLMConfig(architectures=["XGLMForCausalLM"], torch_dtype=dtype, **settings)
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in XGLMForCausalLM(config).named_parameters()}
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    batches = [_random(name, shape, dtype) for name, shape in shapes.items()]
    write_safetensors(folder, batches, max_shard_bytes=max_shard_bytes)
    return folder


def _random(name, shape, dtype):
    def make():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        mean = 1.0 if name.endswith("norm.weight") else 0.0
        return {name: torch.empty(shape, dtype=dtype).normal_(mean, STD, generator=generator)}

    return Batch({name: shape}, dtype, make)


if __name__ == "__main__":
    write_random_xglm(Path(sys.argv[1]), **XGLM[sys.argv[2]])
