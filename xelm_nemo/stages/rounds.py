"""The rounds of a run: which expert begins from which, as settings, the tree and a finished set have it."""

from xelm_nemo.clustering.typology import nearest_donor, with_distances
from xelm_nemo.config.rounds import planned_rounds
from xelm_nemo.errors import ConfigError
from xelm_nemo.rounds.plan import Rounds
from xelm_nemo.stages.cluster import language_experts
from xelm_nemo.stages.run import Run, inherited


def rounds_of(run: Run) -> Rounds:
    """The experts of all rounds.

    Raises:
        ArtifactError: the run adds to a set that is not there.
        ConfigError: a new language has no distances.
    """
    return planned_rounds(run.config, donors(run))


def donors(run: Run) -> list[int]:
    """For each language that the run adds, the expert of the set whose language is nearest.

    Languages of the set that have no distances, such as those of a set by text, are no donors.

    Raises:
        ArtifactError: the run adds to a set that is not there.
        ConfigError: a new language has no distances, or no language of the set has any.
    """
    if run.base is None:
        return []
    known, new = language_experts(run.base), run.config.rounds.languages or []
    among, placed = with_distances(list(known)), with_distances(new)
    if lost := [language for language in new if language not in placed]:
        raise ConfigError(
            f"rounds.languages={new} has {lost}, which are not in xelm_nemo/data/typology_distances.json nor "
            "in lang2vec's data (`pip install lang2vec`); leave them out."
        )
    if not among:
        raise ConfigError(
            f"rounds.base={run.config.rounds.base!r} has no expert for a language that distances are known "
            f"of, its own are {list(known)}; set it to a set that has."
        )
    return [known[nearest_donor(language, among)[0]] for language in new]


def check_base(run: Run) -> None:
    """See that the set that a run adds experts to is whole and can be added to; most runs add to none.

    Raises:
        ArtifactError: there is no such set.
        ConfigError: it has other clusters than the run, or an expert for a new language.
    """
    if run.base is None:
        return
    config, base = run.config, run.base.config
    new, there = config.rounds.languages or [], len(inherited(run))
    if config.clustering.num_clusters != there + len(new):
        raise ConfigError(
            f"clustering.num_clusters={config.clustering.num_clusters} does not count the {there} experts of "
            f"rounds.base={config.rounds.base!r} and {len(new)} new ones; set clustering.num_clusters="
            f"{there + len(new)}."
        )
    if config.clustering.method != base.clustering.method:
        raise ConfigError(
            f"clustering.method={config.clustering.method!r}, but rounds.base={config.rounds.base!r} was "
            f"clustered by {base.clustering.method!r}; set clustering.method={base.clustering.method}."
        )
    if known := [language for language in new if language in language_experts(run.base)]:
        raise ConfigError(
            f"rounds.languages={new} has {known}, which rounds.base={config.rounds.base!r} has an expert "
            "for; leave them out."
        )
    donors(run)


def ancestors_tokens(run: Run, name: str) -> int:
    """An expert's share of the tokens that those before it in its line were trained on.

    Each leaves its tokens to all that come of it in the last round, in equal parts, so that a set's tokens
    are those of all rounds. An expert that the run has from a finished set has the share that it has there.
    One that it adds counts its own tokens alone: its donor, which is in the set too, keeps those it has.
    """
    if run.base is not None:
        old = [f"expert{cluster}" for cluster in range(run.config.own_clusters[0])]
        return ancestors_tokens(run.base, name) if name in old else 0
    *before, last = rounds_of(run)
    cluster = next((expert.cluster for expert in last if f"expert{expert.cluster}" == name), None)
    config, total = run.sized, 0
    for expert in (expert for experts in before for expert in experts if cluster in expert.reads):
        tokens = config.batch_size(expert.round) * config.seq_length * config.round_iters[expert.round]
        parts, rest = divmod(tokens, len(expert.reads))
        total += parts + (expert.reads.index(cluster) < rest)
    return total
