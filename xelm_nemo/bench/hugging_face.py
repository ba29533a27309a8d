"""A peer of the training step: Hugging Face's model under torch.compile, with torch's Adam, on one GPU.

Weights in float32, products in BF16 by autocast, so that Adam sees what Megatron's does.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from xelm_nemo import device
from xelm_nemo.checkpoint.architectures import ARCHITECTURES
from xelm_nemo.checkpoint.facts import ModelFacts
from xelm_nemo.errors import ConfigError
from xelm_nemo.model.config import ModelConfig, ParallelConfig


def hugging_face_step(
    shape: ModelConfig,
    layout: ParallelConfig,
    tokens_BS: Tensor,
    num_micro_batches: int,
    *,
    vocab_size: int,
) -> Callable[[], float]:
    """A function that does one step on these tokens [B, S + 1] and gives its loss.

    Raises:
        ConfigError: the layout has more than one rank.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    if layout != ParallelConfig():
        raise ConfigError("providers=hugging_face trains on one GPU; leave it out, or start one process.")
    values = ARCHITECTURES[shape.architecture].write_config(ModelFacts(shape, vocab_size, "fp32", ""))
    config = AutoConfig.for_model(**values)
    with torch.device(device.device()):
        model = AutoModelForCausalLM.from_config(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0, fused=device.has_cuda())
    inputs_BS, labels_BS = tokens_BS[:, :-1].contiguous(), tokens_BS[:, 1:].contiguous()

    @torch.compile
    def mean_loss() -> Tensor:
        with torch.autocast(tokens_BS.device.type, torch.bfloat16):
            logits_BSV = model(inputs_BS, use_cache=False).logits
        return F.cross_entropy(logits_BSV.float().flatten(0, 1), labels_BS.flatten())

    def step() -> float:
        optimizer.zero_grad()
        total = torch.zeros((), device=tokens_BS.device)
        for _ in range(num_micro_batches):
            loss = mean_loss() / num_micro_batches
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(total)

    return step
