"""Every setting of a run: the stages' own settings, composed."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from xelm_nemo.checkpoint.config import SeedModelConfig
from xelm_nemo.clustering.config import ClusteringConfig
from xelm_nemo.corpus.config import CorpusConfig, TokenizerConfig
from xelm_nemo.evaluation.config import EvaluationConfig
from xelm_nemo.expert.config import CheckpointConfig, DenseConfig, OptimConfig, TrainingConfig
from xelm_nemo.launch.config import LaunchConfig
from xelm_nemo.merge.config import UpcycleConfig
from xelm_nemo.model.config import ModelConfig, ParallelConfig, PrecisionConfig, SparseConfig
from xelm_nemo.rounds.config import RoundsConfig
from xelm_nemo.router.config import RouterConfig

# Sections and keys that may differ when a run folder is taken up again: they change where and how
# fast, or what is shown, but not what is learned.
FREE_KEYS = (
    "output",
    "finish_with",
    "wait",
    "dry_run",
    "launch",
    "parallel",
    "precision.fp8.param_gather",  # the masters are the same
    "checkpoint",
    "evaluation",
    "tasks",
    "router",
    "rounds.base",  # a place; stages/base.py sees that the set there is the same
    "corpus.test_split",
    "corpus.on_bad_line",  # a corpus that was read without an error has nothing to skip
    "dense.enabled",
    "upcycle.enabled",
    "training.train_clusters",
    "training.skip_bad_steps",
    "training.deterministic",
    "training.cuda_graphs",
    "training.log_interval",
    "training.save_interval",
    "training.eval_interval",
    "training.eval_sequences",
    "training.profile_iters",
    "training.wandb_project",
)


@dataclass(frozen=True)
class RunConfig:
    """One run: a corpus, its clusters, a seed model, and the experts branched from it."""

    name: str = "run"
    output: str | None = None  # the run folder; None: runs/<name>
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    clustering: ClusteringConfig = field(default_factory=ClusteringConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    seed_model: SeedModelConfig = field(default_factory=SeedModelConfig)
    rounds: RoundsConfig = field(default_factory=RoundsConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    dense: DenseConfig = field(default_factory=DenseConfig)
    upcycle: UpcycleConfig = field(default_factory=UpcycleConfig)
    router: RouterConfig = field(default_factory=RouterConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    tasks: list[str] = field(default_factory=list)  # that `evaluate` runs lm-evaluation-harness on
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    finish_with: list[str] = field(default_factory=list)  # stages that follow training: evaluate, export
    wait: bool = True  # with launch=slurm: until the jobs have ended; false returns once they are submitted
    dry_run: bool = False  # print the configuration and the plan, and touch nothing

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.output or f"runs/{self.name}")

    @property
    def seq_length(self) -> int:
        """Tokens of a training sequence."""
        return self.training.seq_length or self.model.max_position_embeddings

    @property
    def round_sizes(self) -> list[int]:
        """How many experts each round trains."""
        rounds, clusters = self.rounds, self.clustering.num_clusters
        if rounds.kind == "adapt":
            return [len(rounds.languages or [])]
        if rounds.kind == "hmr":
            return rounds.experts or [2**n for n in range(clusters.bit_length())]
        return [clusters]

    @property
    def round_iters(self) -> list[int]:
        """How many iterations each round trains for."""
        return self.rounds.train_iters or [self.training.train_iters] * len(self.round_sizes)

    def batch_size(self, number: int) -> int:
        """Sequences of one expert's step in a round: its share of a step of all experts."""
        return self.training.global_batch_size // self.round_sizes[number]

    @property
    def expert_batch_size(self) -> int:
        """Sequences of one expert's step in the last round."""
        return self.batch_size(-1)

    @property
    def dense_iters(self) -> int:
        """Iterations of the dense baseline."""
        return self.dense.train_iters or sum(self.round_iters)

    @property
    def dense_batch_size(self) -> int:
        """Sequences of the dense baseline's step, such that its tokens equal those of all experts."""
        return self.training.global_batch_size * sum(self.round_iters) // self.dense_iters

    @property
    def upcycle_iters(self) -> int:
        """Iterations of the upcycled model."""
        return self.upcycle.train_iters or sum(self.round_iters)

    @property
    def upcycle_batch_size(self) -> int:
        """Sequences of the upcycled model's step, such that its tokens equal those of all experts."""
        return self.training.global_batch_size * sum(self.round_iters) // self.upcycle_iters

    @property
    def own_clusters(self) -> list[int]:
        """The clusters whose experts the run trains itself: all, or those that it adds to a finished set."""
        clusters = self.clustering.num_clusters
        return list(range(clusters - self.round_sizes[-1], clusters))

    @property
    def upcycled_shape(self) -> SparseConfig:
        """The shape of the model that is made of the seed model, which is dense."""
        dense = self.model.dense if isinstance(self.model, SparseConfig) else self.model
        return SparseConfig(**dataclasses.asdict(dense), **self.upcycle.shape_settings)

    @property
    def train_clusters(self) -> list[int]:
        """The experts to train now."""
        chosen = self.training.train_clusters
        return self.own_clusters if chosen is None else chosen


@dataclass(frozen=True)
class ExportConfig:
    """One export, of a model or of a folder of models."""

    source: str
    output: str
    # "hf", "metaseq" or "nemo", of a model; "averaged" or "upcycled", of a set; "upstream", of a clusterer.
    format: str = "hf"
    average: str | None = None  # of a set: a language, or "expert0:2,expert3:1"; None: all alike
    moe_layer_freq: int | None = None  # of upcycled: the last of every so many layers is sparse; None: 2
    average_clusters: int | None = None  # of a language: its largest so many; None: all of its clusters
    dtype: str | None = None  # "fp32", "bf16" or "fp16"; None: the model's, or what it was imported in
    tokenizer: str | None = None  # its folder or hub id; None: the one that the model was trained with


def differing_keys(mine: RunConfig, theirs: RunConfig) -> list[str]:
    """The keys, `a.b` for nested ones, whose values make these two different runs."""
    ours, recorded = _flat(dataclasses.asdict(mine)), _flat(dataclasses.asdict(theirs))
    if mine.seed_model.source != "random":  # a model from elsewhere has its own words
        del ours["seed_model.vocab_size"]
    return [key for key, value in ours.items() if not _is_free(key) and value != recorded[key]]


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(free + ".") for free in FREE_KEYS)


def _flat(values: dict[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
