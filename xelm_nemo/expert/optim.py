"""Megatron's optimizer over Megatron's data-parallel wrapper, and the learning-rate schedule."""

import math
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.transformer.module import Float16Module

from xelm_nemo import parallel
from xelm_nemo.checkpoint.optim_state import save_in_place
from xelm_nemo.expert.config import OptimConfig
from xelm_nemo.model.gpt import DecoderModel


def wrap(model: DecoderModel, *, overlap_param_gather: bool = True) -> DistributedDataParallel:
    """The model in Megatron's data-parallel wrapper, gradients in float32.

    Ranks exchange gradients while backward computes others, and weights while forward does, or else at the
    end of the optimizer's step.
    """
    has_peers = dist.get_world_size(parallel.data_parallel_group()) > 1
    config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=True,
        overlap_grad_reduce=has_peers,
        overlap_param_gather=has_peers and overlap_param_gather,
        fp8_param_gather=bool(model.config.fp8_param),
    )
    for module in model.modules():
        if hasattr(module, "fuse_wgrad_accumulation"):  # Transformer Engine's: sums in main_grad itself
            module.fuse_wgrad_accumulation = True
    module = Float16Module(model.config, model) if model.config.bf16 else model
    wrapped = DistributedDataParallel(model.config, config, module)
    if has_peers:
        model.config.no_sync_func = wrapped.no_sync
    return wrapped


def gather_weights(model: DistributedDataParallel) -> None:
    """See that every rank has all weights of the last step, which otherwise come as forward needs them."""
    if model.ddp_config.overlap_param_gather:
        model.start_param_sync(force_sync=True)


def make_optimizer(config: OptimConfig, model: DistributedDataParallel) -> Any:
    """AdamW with state sharded over data-parallel ranks and float32 master weights."""
    dtype = model.config.params_dtype
    settings = OptimizerConfig(
        optimizer="adam",
        lr=config.lr,
        weight_decay=config.weight_decay,
        adam_beta1=config.adam_beta1,
        adam_beta2=config.adam_beta2,
        adam_eps=config.adam_eps,
        clip_grad=config.clip_grad,
        bf16=dtype == torch.bfloat16,
        params_dtype=dtype,
        use_distributed_optimizer=True,
    )
    optimizer = get_megatron_optimizer(settings, [model])
    first = optimizer.chained_optimizers[0]
    for part in optimizer.chained_optimizers:
        save_in_place(part)
        if not any(group["params"] for group in part.optimizer.param_groups):
            part.state_dict = partial(_state_of_no_parameter, part, first)
        if isinstance(part.optimizer, torch.optim.Adam):  # Transformer Engine's Adam needs none of this
            _allocate_state(part.optimizer)
    return optimizer


def update(optimizer: Any) -> float:
    """One step of the optimizer, with clipped gradients; none if their norm is no finite number.

    Megatron's own `step` takes such gradients in, unless it scales the loss, as float16 has to.

    Returns:
        The norm before clipping, the same on all ranks.
    """
    optimizer.prepare_grads()
    norm = float(optimizer.get_grad_norm())
    if math.isfinite(norm):
        for part in optimizer.chained_optimizers:
            parameters = part.get_parameters()  # none of moe_experts in a stage that has none
            if part.config.clip_grad > 0 and parameters:
                clip_grad_by_total_norm_fp32(parameters, part.config.clip_grad, norm)
        optimizer.step_with_ready_grads()
    return norm


def _state_of_no_parameter(part: Any, other: Any) -> dict[str, Any]:
    """What Megatron saves of an optimizer beside parameters' states, with the number of steps of another.

    Divided moe_experts have an optimizer of their own, even in a stage of a pipeline that has none of them.
    It counts no steps there, and what the first rank has of it is saved for all.
    """
    state: dict[str, Any] = other.state_dict()
    counted = [group["step"] for group in state["optimizer"]["param_groups"] if "step" in group]
    step = {"step": counted[0]} if counted else {}
    groups = part.optimizer.state_dict()["param_groups"]
    own = [{key: value for key, value in group.items() if key != "params"} | step for group in groups]
    return state | {"optimizer": {"param_groups": own}}


def _allocate_state(adam: torch.optim.Adam) -> None:
    """Give Adam the state of step 0: Megatron loads a checkpoint only into state that exists."""
    for group in adam.param_groups:
        for parameter in group["params"]:
            zeros = {"exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
            adam.state[parameter] = {"step": torch.tensor(0.0), **zeros}


def set_learning_rate(optimizer: Any, rate: float) -> None:
    """Give every parameter group the rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
