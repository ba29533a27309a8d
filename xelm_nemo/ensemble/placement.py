"""Which ranks run which models of an evaluation."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass


def _alone() -> None:
    """One process has nobody to wait for."""


@dataclass(frozen=True)
class Team:
    """The ranks of an evaluation, in groups that each hold one model at a time.

    Models are scored one after another, each once, so that one in memory is enough however many there are;
    more ranks score more of them at once. What is found passes through files, on one machine or many.

    Attributes:
        group: index of this process's group.
        num_groups: how many groups there are.
        leads_group: whether this process writes down what its group finds.
        wait: returns when all ranks have called it.
    """

    group: int = 0
    num_groups: int = 1
    leads_group: bool = True
    wait: Callable[[], None] = _alone

    @property
    def leads(self) -> bool:
        """Whether this one process puts everything together."""
        return self.group == 0 and self.leads_group

    def turns(self, num_models: int) -> Iterator[tuple[int, bool]]:
        """Models for this group to load, and whether it is to score them.

        All groups have equally many turns, for ranks load together; a group that would go without loads the
        last model along with another group.
        """
        for start in range(0, num_models, self.num_groups):
            model = start + self.group
            yield min(model, num_models - 1), model < num_models
