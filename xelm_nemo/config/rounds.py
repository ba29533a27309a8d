"""What the settings of rounds mean, and which of them cannot be."""

from collections.abc import Sequence

from xelm_nemo.clustering.typology import XELM_LANGUAGES, typology_clusters
from xelm_nemo.config.schema import RunConfig
from xelm_nemo.errors import ConfigError
from xelm_nemo.rounds.plan import Rounds, beside_a_set, down_the_tree, from_seed_model


def planned_rounds(config: RunConfig, donors: Sequence[int] = ()) -> Rounds:
    """The experts of all rounds.

    Args:
        config: a checked one.
        donors: for experts beside a finished set: of each new language the expert to begin from.
    """
    if config.rounds.kind == "adapt":
        return beside_a_set(config.own_clusters[0], donors)
    if config.rounds.kind == "hmr":
        languages = config.clustering.languages or []
        return down_the_tree([typology_clusters(languages, number) for number in config.round_sizes])
    return from_seed_model(config.clustering.num_clusters)


def rounds_problems(config: RunConfig) -> list[str]:
    """Settings of rounds that cannot be, or that have no effect."""
    rounds, kind = config.rounds, config.rounds.kind
    belongs = {"experts": "hmr", "train_iters": "hmr", "base": "adapt", "languages": "adapt"}
    problems = [
        f"rounds.{key}={getattr(rounds, key)!r} is for rounds.kind={owner}; leave it out"
        for key, owner in belongs.items()
        if kind != owner and getattr(rounds, key) is not None
    ]
    if kind == "hmr":
        return problems + _tree(config)
    return problems + (_set(config) if kind == "adapt" else [])


def _tree(config: RunConfig) -> list[str]:
    sizes, clusters, problems = config.round_sizes, config.clustering.num_clusters, list[str]()
    if config.clustering.method != "typology":
        problems.append(
            "rounds.kind=hmr goes down the tree of languages, and "
            f"clustering.method={config.clustering.method!r} has none; set clustering=typology"
        )
    if config.clustering.languages is None:
        problems.append(
            "rounds.kind=hmr plans its rounds before the corpus is read; name its languages, such as "
            f"clustering.languages=[{','.join(XELM_LANGUAGES)}]"
        )
    if sizes[-1] != clusters or sorted(set(sizes)) != sizes or sizes[0] < 1:
        given = "" if config.rounds.experts is None else f"rounds.experts={sizes} and "
        problems.append(
            f"{given}clustering.num_clusters={clusters}: rounds have more and more experts and the last one "
            f"has one a cluster; set such as rounds.experts={sorted({1, max(1, clusters // 2), clusters})}"
        )
    iterations = config.round_iters
    if len(iterations) != len(sizes) or min(iterations) < 1:
        problems.append(
            f"rounds.train_iters={iterations} are not the iterations of {len(sizes)} rounds, of {sizes} "
            "experts; give as many numbers, each at least 1"
        )
    return problems or _unplannable(config)


def _unplannable(config: RunConfig) -> list[str]:
    try:
        planned_rounds(config)
    except ConfigError as error:
        return [str(error).removesuffix(".")]
    return []


def _set(config: RunConfig) -> list[str]:
    languages, clusters = config.rounds.languages or [], config.clustering.num_clusters
    problems = []
    if config.rounds.base is None:
        problems.append("rounds.base is not set; give the run folder of a finished set, such as runs/xelm16")
    if not languages or len(set(languages)) < len(languages):
        problems.append(f"rounds.languages={languages} must be new languages, each once, such as [he,sv]")
    if clusters <= len(languages):
        problems.append(
            f"clustering.num_clusters={clusters} leaves no cluster for the set in rounds.base beside "
            f"{len(languages)} new ones; it counts both"
        )
    without = {
        "dense.enabled": config.dense.enabled,
        "upcycle.enabled": config.upcycle.enabled,
        "seed_model.train_iters": config.seed_model.train_iters,
        "clustering.assignment": config.clustering.assignment,
        "clustering.source": config.clustering.source,
    }
    return problems + [
        f"{key}={value!r} does not go with rounds.kind=adapt, which takes models and clusters from "
        "rounds.base; leave it out"
        for key, value in without.items()
        if value
    ]
