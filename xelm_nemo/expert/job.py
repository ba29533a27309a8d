"""One model to train, as a file: everything a worker needs, readable by eye."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from xelm_nemo.artifacts import Recipe
from xelm_nemo.errors import ArtifactError
from xelm_nemo.expert.config import OptimConfig
from xelm_nemo.files import read_json, write_json
from xelm_nemo.launch import signals
from xelm_nemo.model.config import (
    NO_FP8,
    FP8Config,
    ModelConfig,
    ParallelConfig,
    recorded_settings,
    shape_from,
)

JOB = "job.json"
CHECKPOINTS = "checkpoints"
BEST = "best"  # the weights of the lowest validation loss, in a folder of their own
MODEL = "model"  # the finished model folder inside the job's folder

# Places, layout and screens: what the trained weights do not depend on.
_NOT_IDENTITY = {
    *("folder", "init", "tokens", "tokenizer", "parallel", "threads", "deterministic", "cuda_graphs"),
    *("log_interval", "save_interval", "eval_interval", "eval_sequences", "stop_signals", "step_timeout"),
    *("keep_last", "keep_best", "keep_optimizer", "resume_at", "skip_bad_steps", "profile_iters"),
    *("wandb_project", "tokens_before"),
}


@dataclasses.dataclass(frozen=True)
class TrainJob:
    """A model to train in a folder of its own. Batch sizes count sequences, over all ranks."""

    name: str
    folder: str
    init: str  # model folder to start from
    tokens: str  # folder of token shards
    tokenizer: str
    clusters: list[int]  # whose documents it reads
    shape: ModelConfig
    parallel: ParallelConfig
    optim: OptimConfig
    dtype: str
    train_iters: int
    global_batch_size: int
    micro_batch_size: int
    seq_length: int
    seed: int
    log_interval: int
    save_interval: int
    eval_interval: int
    eval_sequences: int
    fp8: FP8Config = NO_FP8
    document_mask: bool = False  # tokens see their own document alone
    tokens_before: int = 0  # that count as the model's, besides those that it is trained on here
    skip_bad_steps: int = 0  # in a row, of a gradient that is no number
    keep_last: int = 2  # checkpoints
    keep_best: bool = False  # weights of the lowest validation loss
    resume_at: int | None = None  # iteration of the checkpoint to go back to
    keep_optimizer: bool = True  # checkpoints stay when the model is finished
    deterministic: bool = False
    cuda_graphs: bool = True
    profile_iters: Sequence[int] = ()  # that have a trace
    wandb_project: str | None = None
    threads: int = 1
    step_timeout: float = 1800.0  # seconds
    stop_signals: Sequence[str] = signals.DEFAULT  # save and end on these, to go on when started again

    @property
    def model_folder(self) -> Path:
        """Where the finished model will be."""
        return Path(self.folder) / MODEL

    @property
    def tokens_per_iteration(self) -> int:
        """Tokens that one optimizer step reads."""
        return self.global_batch_size * self.seq_length

    def recipe(self) -> Recipe:
        """What the trained weights depend on; the layout, places and screens do not count."""
        settings = {key: value for key, value in dataclasses.asdict(self).items() if key not in _NOT_IDENTITY}
        settings["shape"] = recorded_settings(self.shape)
        for key, default in {"fp8": NO_FP8, "document_mask": False}.items():
            if getattr(self, key) == default:  # as models without it have always been recorded
                del settings[key]
        if "fp8" in settings:  # the masters are what is trained, wherever weights are kept
            del settings["fp8"]["param_gather"]
        return Recipe("model", settings, {"init": Path(self.init), "tokens": Path(self.tokens)})

    def save(self) -> None:
        """Write `job.json` into the job's folder."""
        write_json(Path(self.folder) / JOB, dataclasses.asdict(self), only_if_changed=True)

    @classmethod
    def load(cls, folder: Path) -> "TrainJob":
        """Read a job's file.

        Raises:
            ArtifactError: the file is missing or was written by another version.
        """
        values = read_json(folder / JOB)
        types = {"parallel": ParallelConfig, "optim": OptimConfig, "fp8": FP8Config}
        try:
            typed = {key: kind(**values[key]) for key, kind in types.items()}
            return cls(**values | typed | {"shape": shape_from(values["shape"])})
        except (KeyError, TypeError) as error:
            raise ArtifactError(
                f"{folder / JOB} is of another version ({error}); start the run again."
            ) from error
