"""Rules of weight maps: which Hugging Face tensors one Megatron tensor is made of.

V vocabulary, Vp padded vocabulary, H hidden, A attention heads, D head size
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Rule(ABC):
    """How one Megatron tensor is made of Hugging Face tensors, and taken apart again.

    `join` and `split` may return what they were given, or views of it.
    """

    megatron: str

    @property
    @abstractmethod
    def parts(self) -> dict[str, Shape]:
        """The Hugging Face names with their shapes, in the order of `split` and `join`."""

    @property
    @abstractmethod
    def megatron_shape(self) -> Shape:
        """The shape of the Megatron tensor on one rank."""

    def fits(self, shape: Shape) -> bool:
        """Whether a Megatron tensor of this shape can be split."""
        return shape == self.megatron_shape

    @abstractmethod
    def split(self, tensor: Tensor) -> list[Tensor]:
        """The Hugging Face tensors in a Megatron tensor."""

    @abstractmethod
    def join(self, parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """The Megatron tensor in `dtype`."""


@dataclass(frozen=True)
class Copy(Rule):
    """The same tensor under two names."""

    hf: str
    shape: Shape

    @property
    def parts(self) -> dict[str, Shape]:
        """The one name."""
        return {self.hf: self.shape}

    @property
    def megatron_shape(self) -> Shape:
        """The same."""
        return self.shape

    def split(self, tensor: Tensor) -> list[Tensor]:
        """The tensor itself."""
        return [tensor]

    def join(self, parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """The tensor itself, where it is of this dtype."""
        return parts[0].to(dtype)


@dataclass(frozen=True)
class PaddedRows(Rule):
    """A [V, H] tensor that Megatron pads with rows of zeros to [Vp, H]; Vp depends on the layout."""

    hf: str
    shape: tuple[int, int]
    padded_rows: int  # Vp of one rank

    @property
    def parts(self) -> dict[str, Shape]:
        """The one name."""
        return {self.hf: self.shape}

    @property
    def megatron_shape(self) -> Shape:
        """[Vp, H]."""
        return (self.padded_rows, self.shape[1])

    def fits(self, shape: Shape) -> bool:
        """Whether it has the rows that are no padding."""
        return len(shape) == 2 and shape[0] >= self.shape[0] and shape[1] == self.shape[1]

    def split(self, tensor: Tensor) -> list[Tensor]:
        """Without the padding."""
        return [tensor[: self.shape[0]]]

    def join(self, parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """With the padding."""
        out = torch.empty(self.megatron_shape, dtype=dtype)
        out[: self.shape[0]].copy_(parts[0])
        out[self.shape[0] :].zero_()
        return out


@dataclass(frozen=True)
class FusedQkv(Rule):
    """Three [A D, ...] projections as one [A 3 D, ...]: query, key and value of head 0, then of head 1.

    The order that megatron-core's SelfAttention.get_query_key_value_tensors reads when every head has
    its own key and value.
    """

    query: str
    key: str
    value: str
    shape: Shape  # of each
    num_heads: int  # A

    @property
    def parts(self) -> dict[str, Shape]:
        """Query, key, value."""
        return dict.fromkeys((self.query, self.key, self.value), self.shape)

    @property
    def megatron_shape(self) -> Shape:
        """[A 3 D, ...]."""
        return (3 * self.shape[0], *self.shape[1:])

    def split(self, tensor: Tensor) -> list[Tensor]:
        """Gather the heads of each projection."""
        projections = tensor.reshape(self.num_heads, 3, -1, *tensor.shape[1:]).unbind(1)
        return [projection.flatten(0, 1) for projection in projections]

    def join(self, parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """Interleave the projections head by head."""
        out = torch.empty(self.megatron_shape, dtype=dtype)
        heads = out.view(self.num_heads, 3, -1, *out.shape[1:])
        for place, part in enumerate(parts):
            heads[:, place].copy_(part.reshape(self.num_heads, -1, *part.shape[1:]))
        return out


@dataclass(frozen=True)
class Tied:
    """A second name that a Hugging Face checkpoint may give to a tensor; not written."""

    hf: str
    to: str


@dataclass(frozen=True)
class Recomputed:
    """A table that a Hugging Face checkpoint may hold, though its configuration implies it; not written."""

    hf: str
