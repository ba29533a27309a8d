"""Settings of rounds of experts."""

from dataclasses import dataclass

KINDS = ("single", "hmr", "adapt")


@dataclass(frozen=True)
class RoundsConfig:
    """What experts begin from.

    `single`: all from the seed model. `hmr`: in rounds down the tree of languages, each from its parent.
    `adapt`: experts for new languages beside a finished set, each from the expert of its nearest language.
    """

    kind: str = "single"
    experts: list[int] | None = (
        None  # hmr: how many each round trains, num_clusters the last; None: 1, 2, 4, ...
    )
    train_iters: list[int] | None = None  # hmr: of each round; None: training.train_iters in every round
    base: str | None = None  # adapt: the run folder of the finished set
    languages: list[str] | None = None  # adapt: the new ones
