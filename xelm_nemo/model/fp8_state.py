"""FP8 scales of Transformer Engine's layers in a checkpoint, as tensors.

Transformer Engine stores them as a pickle, and refuses to read that back, for a pickle may run anything.
Only delayed scaling has a state; the other recipes find each scale from the tensor that it is for.
"""

from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from xelm_nemo.errors import CheckpointError

_DIRECTIONS = ("scaling_fwd", "scaling_bwd")
_STATE = ("scale", "amax_history")
_TENSORS_OF_A_PRODUCT = 3  # that have a scale on the way forward: input, weight, output


def use_plain_state() -> None:
    """Have Transformer Engine's layers store and read their scales so, in this process."""
    from transformer_engine.pytorch.module.base import TransformerEngineBaseModule

    TransformerEngineBaseModule.get_extra_state = packed_scales
    TransformerEngineBaseModule.set_extra_state = unpack_scales


def packed_scales(layer: Any) -> Tensor:
    """The scales of a layer and what they are found from, uint8; empty where there are none."""
    states = {direction: layer.fp8_meta.get(direction) for direction in _DIRECTIONS}
    if not all(hasattr(state, name) for state in states.values() for name in _STATE):
        return torch.empty(0, dtype=torch.uint8)
    tensors = {
        f"{direction}.{name}": getattr(state, name).detach().cpu().contiguous()
        for direction, state in states.items()
        for name in _STATE
    }
    return torch.frombuffer(bytearray(save(tensors)), dtype=torch.uint8)


def unpack_scales(layer: Any, packed: Tensor | None) -> None:
    """Give a layer the scales that `packed_scales` took from one.

    Raises:
        CheckpointError: this is something else, such as the pickle of an earlier version.
    """
    if packed is None or packed.numel() == 0:
        return
    try:
        tensors = load(packed.cpu().numpy().tobytes())
        scale, history = tensors["scaling_fwd.scale"], tensors["scaling_fwd.amax_history"]
    except (SafetensorError, KeyError) as error:
        raise CheckpointError(
            "the checkpoint's FP8 scales are not as this version stores them; delete the folder checkpoints "
            "of the model, which then starts again."
        ) from error
    layer.fp8_meta["num_gemms"] = len(scale) // _TENSORS_OF_A_PRODUCT
    layer.init_fp8_meta_tensors(_delayed_scaling(len(history)))
    for direction in _DIRECTIONS:
        for name in _STATE:
            getattr(layer.fp8_meta[direction], name).copy_(tensors[f"{direction}.{name}"])


def forget_largest(model: torch.nn.Module) -> None:
    """Have delayed scaling forget how large the random weights are that layers kept in FP8 are made with.

    It goes by the largest values of many steps, and these weights were never in one.
    """
    for layer in model.modules():
        history = getattr(getattr(layer, "fp8_meta", {}).get("scaling_fwd"), "amax_history", None)
        if history is not None:
            history.zero_()  # in place: weights know where in it they are counted


def _delayed_scaling(amax_history_len: int) -> Any:
    """A recipe to make a layer's tensors by; the layer meets its own at the next step."""
    from transformer_engine.common.recipe import DelayedScaling

    return DelayedScaling(amax_history_len=amax_history_len)
