"""Megatron's optimizer over Megatron's data-parallel wrapper, and the learning-rate schedule."""

import dataclasses
import math
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.dict_utils import extract_matching_values, nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.transformer.module import Float16Module

from xelm_nemo import parallel
from xelm_nemo.expert.config import OptimConfig
from xelm_nemo.model.gpt import DecoderModel

_STATE = ("param", "exp_avg", "exp_avg_sq")


def wrap(model: DecoderModel) -> DistributedDataParallel:
    """The model in Megatron's data-parallel wrapper, gradients in float32.

    Ranks exchange gradients while backward computes others, and weights while forward does.
    """
    has_peers = dist.get_world_size(parallel.data_parallel_group()) > 1
    config = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=True,
        overlap_grad_reduce=has_peers,
        overlap_param_gather=has_peers,
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
    for part in optimizer.chained_optimizers:
        _save_from_where_parameters_are(part)
        _save_without_detours(part)
        if isinstance(part.optimizer, torch.optim.Adam):  # Transformer Engine's Adam needs none of this
            _allocate_state(part.optimizer)
            _keep_step_when_loading(part)
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
            if part.config.clip_grad > 0:
                clip_grad_by_total_norm_fp32(part.get_parameters(), part.config.clip_grad, norm)
        optimizer.step_with_ready_grads()
    return norm


def _allocate_state(adam: torch.optim.Adam) -> None:
    """Give Adam the state of step 0: Megatron loads a checkpoint only into state that exists."""
    for group in adam.param_groups:
        for parameter in group["params"]:
            zeros = {"exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
            adam.state[parameter] = {"step": torch.tensor(0.0), **zeros}


def _keep_step_when_loading(part: Any) -> None:
    """Restore torch Adam's step as Megatron 0.15 should.

    It looks for the step among the tensors of a checkpoint, where it is not, and gives all parameters
    one and the same step tensor, which Adam would then count up once a parameter.
    """
    set_states = part._set_main_param_and_optimizer_states

    def set_states_and_step(model_param: torch.Tensor, tensors: dict[str, torch.Tensor]) -> None:
        group, place = part.model_param_group_index_map[model_param]
        state = part.optimizer.state[part.optimizer.param_groups[group]["params"][place]]
        state["step"] = state["step"].clone()
        set_states(model_param, {"step": state["step"], **tensors})

    part._set_main_param_and_optimizer_states = set_states_and_step


def _save_from_where_parameters_are(part: Any) -> None:
    """Save the state of every parameter as its own, which Megatron 0.15 does only for the first bucket.

    It packs the buckets of a buffer without the padding between them, and then cuts the parameters out
    at places that count the padding. A tied embedding on two pipeline stages has a bucket of its own.
    """
    gather = part.get_parameter_state_dp_zero

    def gather_with_padding(**options: Any) -> Any:
        state = gather(**options)
        for index, buffer in enumerate(part.buffers):
            for tensors in state[index].values():
                packed = {key: value for key, value in tensors.items() if isinstance(value, torch.Tensor)}
                tensors.update({key: _with_padding(value, buffer) for key, value in packed.items()})
        return state

    part.get_parameter_state_dp_zero = gather_with_padding


def _save_without_detours(part: Any) -> None:
    """Save the state of one data-parallel rank from where it lies, under the names that it has anyway.

    Megatron 0.15 copies each tensor to the CPU, to the device and to the CPU again, while training waits.
    """
    by_detours = part.sharded_param_state_fully_reshardable

    def sharded_state(
        model_state: dict[str, Any], is_loading: bool = False, metadata: dict[str, Any] | None = None
    ) -> Any:
        if is_loading or part.data_parallel_group.size() > 1:
            return by_detours(model_state, is_loading, metadata)
        weights, _ = extract_matching_values(model_state, lambda value: isinstance(value, ShardedTensor))
        known = {weight.data: weight for weight in nested_values(weights)}
        parameters = [parameter for buffer in part.buffers for parameter in buffer.param_index_map]
        return {index: _sharded(part, known[parameter]) for index, parameter in enumerate(parameters)}

    part.sharded_param_state_fully_reshardable = sharded_state


def _sharded(part: Any, weight: Any) -> dict[str, Any]:
    """A parameter's optimizer state, each tensor divided among ranks as the parameter is."""
    tensors = part._get_main_param_and_optimizer_states(weight.data)
    return {
        key: dataclasses.replace(
            weight,
            key=f"optimizer.state.{key}.{weight.key}",
            data=tensors[key].view(weight.data.shape),
            dtype=tensors[key].dtype,
        )
        for key in _STATE
    }


def _with_padding(packed: torch.Tensor, buffer: Any) -> torch.Tensor:
    if len(buffer.buckets) == 1:  # nothing comes after its padding
        return packed
    padded, start = packed.new_zeros(buffer.numel), 0
    for bucket in buffer.buckets:
        size = bucket.numel_unpadded
        padded[bucket.offset : bucket.offset + size] = packed[start : start + size]
        start += size
    return padded


def set_learning_rate(optimizer: Any, rate: float) -> None:
    """Give every parameter group the rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
