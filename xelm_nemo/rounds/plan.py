"""Which expert of which round begins from which, and whose documents it reads."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from xelm_nemo.errors import ConfigError


@dataclass(frozen=True)
class PlannedExpert:
    """One expert of one round.

    Attributes:
        round: from 0.
        cluster: its number among the experts of its round.
        reads: the clusters of documents that it is trained on; they are those of the last round.
        parent: the expert of the round before that it begins from; in round 0 an expert of the set that the
            run adds to, or None for the seed model.
    """

    round: int
    cluster: int
    reads: tuple[int, ...]
    parent: int | None = None


Rounds = list[list[PlannedExpert]]


def from_seed_model(num_clusters: int) -> Rounds:
    """One round, an expert a cluster."""
    return [[PlannedExpert(0, cluster, (cluster,)) for cluster in range(num_clusters)]]


def down_the_tree(levels: Sequence[Mapping[str, int]]) -> Rounds:
    """A round for each level of a tree of languages, root first.

    Args:
        levels: language -> cluster, of the same languages; clusters of the last level are those of documents.

    Raises:
        ConfigError: a level divides other clusters than the one before has.
    """
    rounds, leaf_of = Rounds(), levels[-1]
    for number, cluster_of in enumerate(levels):
        above = levels[number - 1] if number else None
        experts = []
        for cluster, members in _members(cluster_of).items():
            parents = sorted({above[language] for language in members}) if above else [None]
            if len(parents) > 1:
                raise ConfigError(
                    f"rounds.experts={[len(set(level.values())) for level in levels]} is no tree: "
                    f"{' '.join(members)} are one cluster of round {number} and several of the round before; "
                    "use powers of two, or leave that round out."
                )
            reads = tuple(sorted({leaf_of[language] for language in members}))
            experts.append(PlannedExpert(number, cluster, reads, parents[0]))
        rounds.append(experts)
    return rounds


def beside_a_set(num_experts: int, donors: Sequence[int]) -> Rounds:
    """One round of experts that are added to a set, each from a donor, whose documents it reads too.

    Args:
        num_experts: of the set; the new ones are numbered on from there.
        donors: for each new expert one of the set.
    """
    new = enumerate(donors, start=num_experts)
    return [[PlannedExpert(0, cluster, (cluster, donor), donor) for cluster, donor in new]]


def with_ancestors(rounds: Rounds, clusters: Iterable[int]) -> Rounds:
    """What is left of the rounds when the last one trains these clusters alone."""
    wanted, kept = set(clusters), Rounds()
    for experts in reversed(rounds):
        kept.insert(0, [expert for expert in experts if expert.cluster in wanted])
        wanted = {expert.parent for expert in kept[0] if expert.parent is not None}
    return kept


def _members(cluster_of: Mapping[str, int]) -> dict[int, list[str]]:
    members: dict[int, list[str]] = {cluster: [] for cluster in sorted(set(cluster_of.values()))}
    for language, cluster in cluster_of.items():
        members[cluster].append(language)
    return members
