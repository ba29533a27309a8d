"""Whether models belong together: one vocabulary, one shape."""

import dataclasses
from collections.abc import Mapping

from xelm_nemo.checkpoint.facts import ModelFacts
from xelm_nemo.errors import CheckpointError
from xelm_nemo.model.config import NOT_SIZES


def check_siblings(facts: Mapping[str, ModelFacts]) -> None:
    """See that models can be mixed or averaged: the same vocabulary and the same sizes, dropout aside.

    Args:
        facts: name -> what is known of the model.

    Raises:
        CheckpointError: names two models and everything in which they differ.
    """
    (first, ours), *others = facts.items()
    for name, theirs in others:
        mine, other = _sizes(ours), _sizes(theirs)
        differing = [
            f"{key} ({mine.get(key)!r}, {other.get(key)!r})"
            for key in mine | other
            if mine.get(key) != other.get(key)
        ]
        if differing:
            raise CheckpointError(
                f"{first} and {name} differ in {', '.join(differing)}; "
                "give models branched from one seed model."
            )


def _sizes(facts: ModelFacts) -> dict[str, object]:
    shape = dataclasses.asdict(facts.shape)
    sizes = {key: value for key, value in shape.items() if key not in NOT_SIZES}
    return {"vocab_size": facts.vocab_size, **sizes}
