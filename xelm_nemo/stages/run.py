"""A run folder: where each artifact is."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from xelm_nemo import device
from xelm_nemo.checkpoint.architectures import read_shape
from xelm_nemo.checkpoint.facts import FACTS, load_facts
from xelm_nemo.checkpoint.metaseq import read_metaseq_shape
from xelm_nemo.checkpoint.nemo_context import read_context
from xelm_nemo.config.compose import from_yaml
from xelm_nemo.config.schema import RunConfig
from xelm_nemo.corpus.documents import Document, read_documents, read_shard
from xelm_nemo.errors import ArtifactError
from xelm_nemo.expert.job import MODEL
from xelm_nemo.files import read_json
from xelm_nemo.launch import pool

CONFIG = "config.yaml"
SET = "set.json"  # beside a round's experts: which finished model is for which cluster


@dataclasses.dataclass(frozen=True)
class Run:
    """The paths of a run."""

    config: RunConfig

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.config.folder

    @property
    def sized(self) -> RunConfig:
        """The configuration with the sizes that the models have: an imported seed model brings its own.

        Its dropout is the configuration's. The sizes of a hub's model are known once it is imported; until
        then they are `model.*`.

        Raises:
            ArtifactError: the seed model's folder has no config.json.
            CheckpointError: it describes no model that can be computed with, or is no checkpoint of its kind.
        """
        wanted, source = self.config.model, Path(str(self.config.seed_model.path))
        if self.base:
            found = load_facts(next(iter(inherited(self).values())).model).shape
        elif self.config.seed_model.source == "random":
            return self.config
        elif self.config.seed_model.source == "model":
            found = load_facts(self.finished_seed).shape
        elif self.config.seed_model.source == "hf" and source.is_dir():
            found = read_shape(source)
        elif (self.seed_init / FACTS).is_file():
            found = load_facts(self.seed_init).shape
        elif self.config.seed_model.source == "metaseq":
            found = read_metaseq_shape(source)
        elif self.config.seed_model.source == "nemo":
            found = read_context(source).shape
        else:
            return self.config
        dropout = {name: getattr(wanted, name) for name in ("hidden_dropout", "attention_dropout")}
        return dataclasses.replace(self.config, model=dataclasses.replace(found, **dropout))

    @property
    def corpus(self) -> Path:
        """The corpus: the user's, or the shipped one written out."""
        return Path(self.config.corpus.path) if self.config.corpus.path else self.folder / "corpus"

    def split(self, split: str) -> Path:
        """The folder of the "train", "valid" or "test" split, whatever the corpus calls it."""
        return self.corpus / self.split_name(split)

    def split_name(self, split: str) -> str:
        """What the corpus calls the "train", "valid" or "test" split; a path such as "valid/c4" will do."""
        return str(getattr(self.config.corpus, f"{split}_split"))

    def documents(self, split: str, *, quiet: bool = False) -> Iterator[Document]:
        """The documents of the "train", "valid" or "test" split; `quiet` says nothing of bad lines."""
        return self.subset(self.split_name(split), quiet=quiet)

    def subset(self, name: str, *, quiet: bool = False) -> Iterator[Document]:
        """The documents of a folder of splits by its own name, such as "valid_sw"."""
        return read_documents(self.corpus, name, skip_bad=self.skip_bad, quiet=quiet, **self.corpus_keys())

    def shard(self, name: str, *, quiet: bool = False) -> Iterator[Document]:
        """The documents of a shard of the corpus, `<split>/<shard>`."""
        return read_shard(self.corpus, name, skip_bad=self.skip_bad, quiet=quiet, **self.corpus_keys())

    def corpus_keys(self) -> dict[str, Any]:
        """Under which keys of a line the text, the language and the id are."""
        corpus = self.config.corpus
        keys = {"text_key": corpus.text_key, "lang_key": corpus.lang_key, "id_key": corpus.id_key}
        if corpus.source_key is not None:  # corpora without are recorded as they always were
            keys |= {"source_key": corpus.source_key, "target_key": corpus.target_key}
        return keys

    @property
    def skip_bad(self) -> bool:
        """Whether lines without a document are left out instead of ending the run."""
        return self.config.corpus.on_bad_line == "skip"

    def processes(self, files: Iterable[Path], *, ease: int = 1) -> int:
        """How many processes to read these files with; `ease` is how much faster than tokenising that is."""
        most = self.config.launch.max_parallel or device.cores()
        return pool.num_processes(sum(path.stat().st_size for path in files) // ease, most)

    @property
    def clusterer(self) -> Path:
        """The clusterer and its report."""
        return self.folder / "clusterer"

    @property
    def clusters(self) -> Path:
        """The cluster of every document."""
        return self.folder / "clusters"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer of the run, trained here or copied from the seed model."""
        return self.folder / "tokenizer"

    @property
    def tokens(self) -> Path:
        """The token shards."""
        return self.folder / "tokens"

    @property
    def seed_model(self) -> Path:
        """The working folder of the seed model."""
        return self.folder / "seed_model"

    @property
    def seed_init(self) -> Path:
        """The model folder of the seed model before any training; without training it is the seed model."""
        return self.seed_model / "init" if self.config.seed_model.train_iters else self.seed_weights

    @property
    def seed_weights(self) -> Path:
        """The model folder that experts are branched from."""
        return self.seed_model / MODEL

    def round(self, number: int) -> Path:
        """The working folders of a round's experts."""
        return self.folder / "experts" / f"round{number}"

    @property
    def finished_seed(self) -> Path:
        """With `seed_model.source=model`, where that model is: the run's copy of it, once there is one."""
        return (
            self.seed_init if (self.seed_init / FACTS).is_file() else Path(str(self.config.seed_model.path))
        )

    @property
    def upcycled_init(self) -> Path:
        """The model folder that the seed model is upcycled to."""
        return self.seed_model / "upcycled"

    @property
    def experts(self) -> Path:
        """The working folders of the last round's experts, and of the baselines."""
        return self.round(len(self.config.round_sizes) - 1)

    @property
    def base(self) -> "Run | None":
        """The run whose finished set this one adds experts to.

        Raises:
            ArtifactError: there is none in the folder that is named.
        """
        return None if self.config.rounds.base is None else _opened(self.config.rounds.base)

    @property
    def evaluation(self) -> Path:
        """Results, report and plots."""
        return self.folder / "evaluation"

    @property
    def export(self) -> Path:
        """Exported models, one folder each."""
        return self.folder / "export"


@dataclasses.dataclass(frozen=True)
class Inherited:
    """An expert that a run takes from the set that it adds to.

    Attributes:
        model: its model folder.
        row: what the set says of it.
    """

    model: Path
    row: dict[str, Any]


def inherited(run: Run) -> dict[int, Inherited]:
    """The experts of the set that a run adds to, by cluster; none if it trains all of its own.

    Raises:
        ArtifactError: the set is missing, or lacks an expert.
    """
    base = run.base
    if base is None:
        return {}
    if not (base.experts / SET).is_file():
        raise ArtifactError(
            f"{base.folder} has no finished set of experts; run `python -m xelm_nemo.train` there."
        )
    rows = read_json(base.experts / SET)["experts"]
    found = {row["cluster"]: Inherited((base.experts / row["model"]).resolve(), row) for row in rows}
    missing = [k for k in range(base.config.clustering.num_clusters) if k not in found]
    if missing:
        raise ArtifactError(
            f"{base.experts / SET} lacks experts {missing}; finish that run first, with "
            f"`python -m xelm_nemo.retry output={base.folder}`."
        )
    return dict(sorted(found.items()))


@functools.cache
def _opened(folder: str) -> Run:
    if not (Path(folder) / CONFIG).is_file():
        raise ArtifactError(
            f"rounds.base={folder!r} holds no run; set it to the run folder of a finished set of experts."
        )
    return Run(dataclasses.replace(from_yaml(Path(folder) / CONFIG), output=folder))


def settled(config: RunConfig) -> RunConfig:
    """The configuration with what is left open decided, so that it means the same wherever it is read again.

    `precision.params_dtype=auto` is as the run began, else by the device; `rounds.base` is from the root, and
    so is `seed_model.path` where it is a finished model's.
    """
    if config.seed_model.source == "model":
        path = str(Path(str(config.seed_model.path)).resolve())
        config = dataclasses.replace(config, seed_model=dataclasses.replace(config.seed_model, path=path))
    if config.rounds.base is not None:
        base = str(Path(config.rounds.base).resolve())
        config = dataclasses.replace(config, rounds=dataclasses.replace(config.rounds, base=base))
    if config.precision.params_dtype != "auto":
        return config
    recorded = config.folder / CONFIG
    chosen = from_yaml(recorded).precision.params_dtype if recorded.is_file() else None
    dtype = chosen or ("bf16" if device.has_cuda() else "fp32")
    return dataclasses.replace(config, precision=dataclasses.replace(config.precision, params_dtype=dtype))
