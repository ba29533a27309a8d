"""The optimizer's state as it is saved: every rank writes what it has, from where it lies.

On disk each of Megatron's states of a parameter has the parameter's own name and shape, which any layout can
read. Megatron 0.15 calls that `fully_reshardable` and gathers the states of data-parallel ranks on the CPU of
the first, while training waits. Here each rank saves its part of a parameter, a run of the flattened weights,
as the few boxes of which the run consists, and reads those alone.
"""

import dataclasses
import math
import operator
from collections.abc import Iterator
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import extract_matching_values, nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor

_STATE = ("param", "exp_avg", "exp_avg_sq")
Box = tuple[tuple[int, ...], tuple[int, ...]]  # where it begins, its shape


def save_in_place(part: Any) -> None:
    """Have one of Megatron's distributed optimizers save its state from where it lies, and load it there.

    Its `sharded_state_dict` and `load_state_dict` call these two for states of this kind.
    """

    def sharded_state(model_state: dict[str, Any], *_: Any) -> dict[int, Any]:
        return {index: _state(part, weight) for index, weight in enumerate(own_weights(part, model_state))}

    def load_state(_: dict[int, Any]) -> None:
        """All has been read into the optimizer's own tensors; only torch Adam's steps are one tensor."""
        for parameter in _own_parameters(part):
            main = part._get_main_param_and_optimizer_states(parameter)["param"]
            own = part.optimizer.state[main]
            if "step" in own:  # which Adam would count up once a parameter
                own["step"] = own["step"].clone()

    part.sharded_param_state_fully_reshardable = sharded_state
    part.load_parameter_state_from_fully_reshardable = load_state


def own_weights(part: Any, model_state: dict[str, Any]) -> Iterator[ShardedTensor]:
    """Of a model's sharded weights, those of whose state this data-parallel rank has a part."""
    weights, _ = extract_matching_values(model_state, lambda value: isinstance(value, ShardedTensor))
    known = {weight.data: weight for weight in nested_values(weights)}
    return (known[parameter] for parameter in _own_parameters(part))


def boxes(start: int, stop: int, shape: tuple[int, ...]) -> Iterator[Box]:
    """The boxes, in order, that elements `start` to `stop` of a row-major tensor of this shape consist of."""
    if start >= stop:
        return
    if len(shape) == 1:
        yield (start,), (stop - start,)
        return
    row = math.prod(shape[1:])
    first, last = -(-start // row), stop // row  # rows from `first` to `last` are whole
    if first > last:  # it lies within one row
        yield from _within(last, start, stop, shape)
        return
    yield from _within(first - 1, start, first * row, shape)
    if first < last:
        yield (first, *[0] * (len(shape) - 1)), (last - first, *shape[1:])
    yield from _within(last, last * row, stop, shape)


def _within(index: int, start: int, stop: int, shape: tuple[int, ...]) -> Iterator[Box]:
    """The boxes of elements that lie in the row of this index."""
    begin = index * math.prod(shape[1:])
    for place, size in boxes(start - begin, stop - begin, shape[1:]):
        yield (index, *place), (1, *size)


def _state(part: Any, weight: ShardedTensor) -> dict[str, dict[int, ShardedTensor]]:
    """What this rank has of the state of a parameter, whose weights are stored as `weight`, in boxes."""
    tensors = part._get_main_param_and_optimizer_states(weight.data)
    return {
        name: dict(enumerate(boxed(part, weight, tensors[name], f"optimizer.state.{name}.{weight.key}")))
        for name in _STATE
    }


def boxed(part: Any, weight: ShardedTensor, state: torch.Tensor, key: str) -> Iterator[ShardedTensor]:
    """What this rank has of a parameter's state, in boxes.

    Args:
        part: one of Megatron's distributed optimizers.
        weight: the parameter and how it is stored.
        state: a number for each of this rank's elements of it.
        key: name of the whole state on disk.
    """
    flat, start = state.view(-1), part._get_model_param_range_map(weight.data)["param"].start
    shape = (1,) * weight.prepend_axis_num + tuple(weight.data.shape)  # layers are stored as one tensor
    done = 0
    for place, size in boxes(start, start + flat.numel(), shape):
        count = math.prod(size)
        yield dataclasses.replace(
            weight,
            key=key,
            data=flat[done : done + count].view(size),
            dtype=flat.dtype,
            local_shape=size,
            global_offset=tuple(map(operator.add, weight.global_offset, place)),
            prepend_axis_num=0,
            axis_fragmentations=None,  # boxes are no regular grid
            replica_id=(*weight.replica_id[:2], 0),  # no other data-parallel rank has this
        )
        done += count


def _own_parameters(part: Any) -> Iterator[Any]:
    """The parameters of whose state this data-parallel rank has a part."""
    for buffer in part.gbuf_ranges:
        for buckets in buffer.values():
            for bucket in buckets:
                yield from bucket["param_map"]
