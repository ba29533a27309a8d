"""Models that take turns on devices: where each one waits, and how it gets onto a device in time."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn


def place(sizes_bytes: Sequence[int], room_bytes: Sequence[int]) -> list[int] | None:
    """The device of each model: all on the first if they fit, else spread in order over those there are.

    Args:
        sizes_bytes: of each model.
        room_bytes: what each device can hold.

    Returns:
        the index of each model's device; None where the devices together are too small.
    """
    places: list[int] = []
    device, left = 0, list(room_bytes)
    for size in sizes_bytes:
        while device < len(left) and left[device] < size:
            device += 1
        if device == len(left):
            return None
        left[device] -= size
        places.append(device)
    return places


def size_bytes(module: nn.Module) -> int:
    """Bytes of a model's weights, each counted once."""
    return sum(weight.numel() * weight.element_size() for weight in module.parameters())


class Shelf:
    """Models on devices for good, or, where these are too small, in host memory and on a device by turns.

    By turns, two models' weights are on the first device: those of the one that runs, and those of the one
    after it, which are copied meanwhile. The others lie in page-locked host memory.
    """

    def __init__(
        self, modules: Sequence[nn.Module], devices: Sequence[torch.device], room_bytes: Sequence[int]
    ) -> None:
        """Put each model in its place.

        Args:
            modules: the models, alike in shape, in host memory.
            devices: where they may run.
            room_bytes: what each device can hold.
        """
        self._modules, self._devices = modules, devices
        self.places = place([size_bytes(module) for module in modules], room_bytes)
        self._slots: list[_Slot] = []
        if self.places is not None:
            for module, device in zip(modules, self.places, strict=True):
                module.to(devices[device])
        else:
            self._host = [_to_host(module, devices[0]) for module in modules]
            self._slots = [_Slot(modules[0], devices[0]) for _ in range(min(2, len(modules)))]

    def visit(self, chosen: Sequence[int]) -> Iterator[tuple[int, nn.Module, torch.device]]:
        """Yield each model chosen with its index and its device, where it is until the next is asked for."""
        for turn, index in enumerate(chosen):
            if self.places is not None:
                yield index, self._modules[index], self._devices[self.places[index]]
                continue
            slot = self._fetch(index)
            if turn + 1 < len(chosen):
                self._fetch(chosen[turn + 1], beside=slot)
            with slot.lend(self._modules[index], self._host[index]):
                yield index, self._modules[index], self._devices[0]

    def _fetch(self, index: int, beside: "_Slot | None" = None) -> "_Slot":
        """The slot that holds a model's weights, or will once the copy that begins here is done."""
        slot = next((slot for slot in self._slots if slot.holds == index), None)
        if slot is None:
            slot = next(slot for slot in self._slots if slot is not beside)
            slot.fill(index, self._host[index])
        return slot


class _Slot:
    """Memory of a device for the weights of one model."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.weights = {name: torch.empty_like(w, device=device) for name, w in module.named_parameters()}
        self.holds: int | None = None
        self._device, cuda = device, cast(Any, torch.cuda)  # its streams have no types
        self._copies: Any = cuda.Stream(device) if device.type == "cuda" else None

    def fill(self, index: int, host: Mapping[str, Tensor]) -> None:
        """Begin to copy a model's weights here, after whatever still runs on those that are here."""
        self.holds = index
        if self._copies is not None:
            self._copies.wait_stream(torch.cuda.current_stream(self._device))
        with contextlib.nullcontext() if self._copies is None else torch.cuda.stream(self._copies):
            for name, weight in self.weights.items():
                weight.copy_(host[name], non_blocking=True)

    @contextlib.contextmanager
    def lend(self, module: nn.Module, host: Mapping[str, Tensor]) -> Iterator[None]:
        """Let a module compute with the weights here, once they have arrived."""
        if self._copies is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._copies)
        try:
            _give(module, self.weights)
            yield
        finally:
            _give(module, host)


def _to_host(module: nn.Module, device: torch.device) -> dict[str, Tensor]:
    """A module's weights in host memory; its buffers, which are small, go to the device for good."""
    for owner in module.modules():
        for name, buffer in owner.named_buffers(recurse=False):
            setattr(owner, name, buffer.to(device))
    host = {name: weight.data.cpu() for name, weight in module.named_parameters()}
    if device.type == "cuda":  # pages that stay where they are can be copied while the device computes
        host = {name: weight.pin_memory() for name, weight in host.items()}
    _give(module, host)
    return host


def _give(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    for name, weight in module.named_parameters():
        weight.data = weights[name]
