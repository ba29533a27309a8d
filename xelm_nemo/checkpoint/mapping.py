"""Maps between Hugging Face and Megatron weights: lists of rules, exhaustive both ways.

A rule says which Hugging Face tensors a Megatron tensor is made of; `*` stands for the number of the
layer. A tensor that no rule names, and a rule whose tensor is missing, are errors on either side.

V vocabulary, Vp padded vocabulary, H hidden, A attention heads, D head size
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xelm_nemo.errors import CheckpointError

_MOST_NAMES = 8  # of one kind in an error message
# Megatron's own layers keep the norms beside the linear layers that Transformer Engine fuses them into.
_FUSED_NORMS = {
    ".input_layernorm.": ".self_attention.linear_qkv.layer_norm_",
    ".pre_mlp_layernorm.": ".mlp.linear_fc1.layer_norm_",
}


@dataclass(frozen=True)
class Rule(ABC):
    """How one Megatron tensor is made of Hugging Face tensors, and taken apart again."""

    megatron: str

    @property
    @abstractmethod
    def parts(self) -> tuple[str, ...]:
        """The Hugging Face names, in the order of `split` and `join`."""

    @abstractmethod
    def split(self, tensor: Tensor) -> list[Tensor]:
        """The Hugging Face tensors in a Megatron tensor."""

    @abstractmethod
    def join(self, parts: Sequence[Tensor], out: Tensor) -> None:
        """Fill a Megatron tensor, casting to its dtype."""


@dataclass(frozen=True)
class Copy(Rule):
    """The same tensor under two names."""

    hf: str

    @property
    def parts(self) -> tuple[str, ...]:
        """The one name."""
        return (self.hf,)

    def split(self, tensor: Tensor) -> list[Tensor]:
        """The tensor itself."""
        return [tensor]

    def join(self, parts: Sequence[Tensor], out: Tensor) -> None:
        """Copy it."""
        out.copy_(parts[0])


@dataclass(frozen=True)
class PaddedRows(Rule):
    """A [V, H] tensor that Megatron pads with rows of zeros to [Vp, H]."""

    hf: str
    num_rows: int  # V

    @property
    def parts(self) -> tuple[str, ...]:
        """The one name."""
        return (self.hf,)

    def split(self, tensor: Tensor) -> list[Tensor]:
        """Without the padding."""
        return [tensor[: self.num_rows]]

    def join(self, parts: Sequence[Tensor], out: Tensor) -> None:
        """With the padding."""
        out[: self.num_rows].copy_(parts[0])
        out[self.num_rows :].zero_()


@dataclass(frozen=True)
class FusedQkv(Rule):
    """Three [A D, ...] projections as one [A 3 D, ...]: query, key and value of head 0, then of head 1.

    The order that megatron-core's SelfAttention.get_query_key_value_tensors reads when every head has
    its own key and value.
    """

    query: str
    key: str
    value: str
    num_heads: int  # A

    @property
    def parts(self) -> tuple[str, ...]:
        """Query, key, value."""
        return (self.query, self.key, self.value)

    def split(self, tensor: Tensor) -> list[Tensor]:
        """Gather the heads of each projection."""
        projections = tensor.reshape(self.num_heads, 3, -1, *tensor.shape[1:]).unbind(1)
        return [projection.flatten(0, 1) for projection in projections]

    def join(self, parts: Sequence[Tensor], out: Tensor) -> None:
        """Interleave the projections head by head."""
        heads = out.view(self.num_heads, 3, -1, *out.shape[1:])
        for place, part in enumerate(parts):
            heads[:, place].copy_(part.reshape(self.num_heads, -1, *part.shape[1:]))


@dataclass(frozen=True)
class Tied:
    """A second name that a Hugging Face checkpoint may give to a tensor; not written."""

    hf: str
    to: str


@dataclass(frozen=True)
class Recomputed:
    """A table that a Hugging Face checkpoint may hold, though its configuration implies it; not written."""

    hf: str


class WeightMap:
    """The rules of one architecture at one depth."""

    def __init__(
        self, rules: Iterable[Rule], *, num_layers: int, optional: Iterable[Tied | Recomputed] = ()
    ) -> None:
        """Write out the rules with `*` for every layer."""
        self._rules = [concrete for rule in rules for concrete in _in_layers(rule, num_layers)]
        self._optional = list(optional)

    def to_megatron(self, hf: Mapping[str, Tensor], megatron: Mapping[str, Tensor], *, source: str) -> None:
        """Fill Megatron tensors, in place, from Hugging Face tensors.

        Args:
            hf: name -> tensor as read.
            megatron: name -> tensor to fill, as `megatron_tensors` gives them.
            source: what errors call the checkpoint.

        Raises:
            CheckpointError: lists tensors that are missing, unknown, of another shape, or not tied as
                they must be. Nothing is filled then.
        """
        self._check_megatron(megatron)
        self._check_hf_names(hf, source)
        self._check_shapes(hf, megatron, source)
        self._check_ties(hf, source)
        with torch.no_grad():
            for rule in self._rules:
                rule.join([hf[name] for name in rule.parts], megatron[rule.megatron])

    def to_hf(self, megatron: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The Hugging Face tensors, in memory of their own, of a model's Megatron tensors.

        Raises:
            CheckpointError: the model holds other tensors than the rules name.
        """
        self._check_megatron(megatron)
        return {
            name: part.clone(memory_format=torch.contiguous_format)
            for rule in self._rules
            for name, part in zip(rule.parts, rule.split(megatron[rule.megatron]), strict=True)
        }

    def _check_megatron(self, megatron: Mapping[str, Tensor]) -> None:
        wanted = {rule.megatron for rule in self._rules}
        if problems := name_problems(megatron, wanted=wanted):
            raise CheckpointError(f"the Megatron model has other tensors than the weight map: {problems}.")

    def _check_hf_names(self, hf: Mapping[str, Tensor], source: str) -> None:
        wanted = {name for rule in self._rules for name in rule.parts}
        if problems := name_problems(hf, wanted=wanted, allowed={spare.hf for spare in self._optional}):
            raise CheckpointError(
                f"{source} has other tensors than its configuration describes: {problems}; "
                "use the configuration and weights of one checkpoint."
            )

    def _check_shapes(self, hf: Mapping[str, Tensor], megatron: Mapping[str, Tensor], source: str) -> None:
        problems = []
        for rule in self._rules:
            parts = rule.split(megatron[rule.megatron].to("meta"))  # shapes without the work
            for name, part in zip(rule.parts, parts, strict=True):
                if hf[name].shape != part.shape:
                    problems.append(f"{name} has shape {list(hf[name].shape)}, expected {list(part.shape)}")
        if problems:
            raise CheckpointError(
                f"{source} has tensors of other shapes than its configuration describes: "
                f"{shorten(problems)}; use the configuration and weights of one checkpoint."
            )

    def _check_ties(self, hf: Mapping[str, Tensor], source: str) -> None:
        for tie in self._optional:
            if isinstance(tie, Tied) and tie.hf in hf and not torch.equal(hf[tie.hf], hf[tie.to]):
                raise CheckpointError(
                    f"{source}: {tie.hf} differs from {tie.to}, and the model has one tensor for both; "
                    "use a checkpoint with a tied head."
                )


def megatron_tensors(model: torch.nn.Module) -> dict[str, Tensor]:
    """A model's weights under the names of Transformer Engine's layers, whichever layers it has.

    The tensors share memory with the model. What layers store beside weights (FP8 scales) is left out.
    """
    state = model.state_dict()
    return {_fused_name(name): state[name] for name in state if not name.endswith("_extra_state")}


def _fused_name(name: str) -> str:
    for own, fused in _FUSED_NORMS.items():
        name = name.replace(own, fused)
    return name


def _in_layers(rule: Rule, num_layers: int) -> list[Rule]:
    if "*" not in rule.megatron:
        return [rule]
    names = {key: value for key, value in vars(rule).items() if isinstance(value, str)}
    return [
        dataclasses.replace(rule, **{key: name.replace("*", str(layer)) for key, name in names.items()})
        for layer in range(num_layers)
    ]


def name_problems(
    found: Mapping[str, Tensor], *, wanted: set[str], allowed: set[str] | frozenset[str] = frozenset()
) -> str:
    """What is missing and what is unknown, as text; empty when nothing is."""
    missing, unknown = wanted - found.keys(), found.keys() - wanted - allowed
    kinds = {"missing": sorted(missing), "unknown": sorted(unknown)}
    return "; ".join(f"{kind}: {shorten(names)}" for kind, names in kinds.items() if names)


def shorten(items: Sequence[str]) -> str:
    """The first few of many names, and how many more there are."""
    shown = ", ".join(items[:_MOST_NAMES])
    more = len(items) - _MOST_NAMES
    return f"{shown} and {more} more" if more > 0 else shown
