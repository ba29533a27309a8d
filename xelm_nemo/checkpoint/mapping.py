"""Maps between Hugging Face and Megatron weights: lists of rules, exhaustive both ways.

A rule says which Hugging Face tensors a Megatron tensor is made of; `*` stands for the number of the
layer. A tensor that no rule names, and a rule whose tensor is missing, are errors on either side. All
shapes follow from the rules, so both sides are checked before anything is read or written.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xelm_nemo.checkpoint.lazy import Batch, LazyTensor
from xelm_nemo.checkpoint.rules import Recomputed, Rule, Shape, Tied
from xelm_nemo.errors import CheckpointError

_MOST_NAMES = 8  # of one kind in an error message


class WeightMap:
    """The rules of one architecture at one depth."""

    def __init__(
        self, rules: Iterable[Rule], *, num_layers: int, optional: Iterable[Tied | Recomputed] = ()
    ) -> None:
        """Write out the rules with `*` for every layer."""
        self._rules = [concrete for rule in rules for concrete in _in_layers(rule, num_layers)]
        self._optional = list(optional)

    def to_megatron(
        self, hf: Mapping[str, LazyTensor], dtype: torch.dtype, *, source: str
    ) -> dict[str, LazyTensor]:
        """The Megatron tensors of one rank, under Megatron's names, made of Hugging Face tensors.

        Args:
            hf: name -> tensor.
            dtype: of the Megatron tensors.
            source: what errors call the checkpoint.

        Raises:
            CheckpointError: lists tensors that are missing, unknown, of another shape, or not tied as
                they must be.
        """
        self._check_hf_names(hf, source)
        wanted = {name: shape for rule in self._rules for name, shape in rule.parts.items()}
        _check_shapes([_shape_problem(name, hf[name], shape) for name, shape in wanted.items()], source)
        self._check_ties(hf, source)
        return {rule.megatron: _joined(rule, hf, dtype, source) for rule in self._rules}

    def to_hf(self, megatron: Mapping[str, LazyTensor], *, source: str) -> list[Batch]:
        """The Hugging Face tensors, in their order in a checkpoint, made of Megatron tensors of any layout.

        Raises:
            CheckpointError: the checkpoint holds other tensors than the rules name, or of other shapes.
        """
        wanted = {rule.megatron for rule in self._rules}
        if problems := name_problems(megatron, wanted=wanted):
            raise CheckpointError(f"{source} has other tensors than its settings describe: {problems}.")
        _check_shapes(
            [
                _shape_problem(rule.megatron, megatron[rule.megatron], rule.megatron_shape)
                for rule in self._rules
                if not rule.fits(megatron[rule.megatron].shape)
            ],
            source,
        )
        return [_split(rule, megatron[rule.megatron]) for rule in self._rules]

    def _check_hf_names(self, hf: Mapping[str, Any], source: str) -> None:
        wanted = {name for rule in self._rules for name in rule.parts}
        if problems := name_problems(hf, wanted=wanted, allowed={spare.hf for spare in self._optional}):
            raise CheckpointError(
                f"{source} has other tensors than its configuration describes: {problems}; "
                "use the configuration and weights of one checkpoint."
            )

    def _check_ties(self, hf: Mapping[str, LazyTensor], source: str) -> None:
        for tie in self._optional:
            if (
                isinstance(tie, Tied)
                and tie.hf in hf
                and not torch.equal(hf[tie.hf].read(), hf[tie.to].read())
            ):
                raise CheckpointError(
                    f"{source}: {tie.hf} differs from {tie.to}, and the model has one tensor for both; "
                    "use a checkpoint with a tied head."
                )


def _joined(rule: Rule, hf: Mapping[str, LazyTensor], dtype: torch.dtype, source: str) -> LazyTensor:
    parts = [hf[name] for name in rule.parts]

    def read() -> Tensor:
        return rule.join([part.read() for part in parts], dtype)

    return LazyTensor(rule.megatron_shape, dtype, read, source)


def _split(rule: Rule, tensor: LazyTensor) -> Batch:
    def make() -> dict[str, Tensor]:
        return dict(zip(rule.parts, rule.split(tensor.read()), strict=True))

    return Batch(rule.parts, tensor.dtype, make)


def _shape_problem(name: str, found: LazyTensor, wanted: Shape) -> str:
    if found.shape == wanted:
        return ""
    return f"{name} has shape {list(found.shape)}, expected {list(wanted)} (in {Path(found.place).name})"


def _check_shapes(problems: Iterable[str], source: str) -> None:
    if found := [problem for problem in problems if problem]:
        raise CheckpointError(
            f"{source} has tensors of other shapes than its configuration describes: "
            f"{shorten(found)}; use the configuration and weights of one checkpoint."
        )


def _in_layers(rule: Rule, num_layers: int) -> list[Rule]:
    if "*" not in rule.megatron:
        return [rule]
    names = {key: value for key, value in vars(rule).items() if isinstance(value, str)}
    return [
        dataclasses.replace(rule, **{key: name.replace("*", str(layer)) for key, name in names.items()})
        for layer in range(num_layers)
    ]


def name_problems(
    found: Mapping[str, Any], *, wanted: set[str], allowed: set[str] | frozenset[str] = frozenset()
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
