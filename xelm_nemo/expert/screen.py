"""What a training run shows: a line of log, `metrics.jsonl`, TensorBoard, and W&B where it is wanted."""

import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from xelm_nemo.expert.config import learning_rate
from xelm_nemo.expert.job import TrainJob
from xelm_nemo.expert.spikes import Spikes
from xelm_nemo.expert.wandb_run import WandbRun
from xelm_nemo.log import METRICS, Metrics
from xelm_nemo.model.flops import own_peak, training_flops

log = logging.getLogger(__name__)


class Screen:
    """Rank 0's reports; a resumed run goes on where its checkpoint was, without doubled points."""

    def __init__(self, job: TrainJob, *, resume_at: int, vocab_size: int) -> None:
        """Open the files of the job's folder; `vocab_size` is the model's, for the work that a token is."""
        folder = Path(job.folder)
        self._job = job
        self._metrics = Metrics(folder / METRICS, resume_at=resume_at)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=resume_at + 1, flush_secs=10)
        self._wandb = WandbRun(job) if job.wandb_project else None
        self._spikes = Spikes()
        self._flops, peak = training_flops(job.shape, vocab_size, job.seq_length), own_peak()
        self._peak = peak and peak * job.parallel.num_ranks
        self._since = (time.perf_counter(), resume_at, 0.0)

    def show(self, iteration: int, values: Mapping[str, float]) -> None:
        """Report values of an iteration: "valid_loss", or "loss", "grad_norm" and "waited_seconds".

        The last is what training has waited for data so far; what is new of it becomes a share of the time.
        """
        line: dict[str, float] = {"iteration": iteration, **values}
        if "loss" in values:
            line["lr"] = learning_rate(self._job.optim, iteration - 1, self._job.train_iters)
            line |= self._pace(iteration, line.pop("waited_seconds"))
            if (height := self._spikes.height(values["loss"])) is not None:
                line["loss_spike"] = True
                log.warning(
                    "%s: the loss %.4f at iteration %d is %.4f above the median of those logged before; "
                    "its gradient norm is %.4g",
                    *(self._job.name, values["loss"], iteration, height, values["grad_norm"]),
                )
        self._metrics.write(line)
        for name, value in line.items():
            if name != "iteration":
                self._board.add_scalar(name, value, iteration)
        if self._wandb is not None:
            self._wandb.show(line)
        log.info("%s", _sentence(self._job, line))

    def _pace(self, iteration: int, waited: float) -> dict[str, float]:
        """Since the last line: tokens per second, validation and checkpoints included, and waits for data."""
        now = time.perf_counter()
        then, last_iteration, waited_then = self._since
        self._since = (now, iteration, waited)
        tokens = (iteration - last_iteration) * self._job.tokens_per_iteration
        pace = tokens / (now - then)
        shares = {"data_wait": (waited - waited_then) / (now - then)}
        if self._peak is not None:
            shares["mfu"] = pace * self._flops / self._peak
        return {"tokens_per_second": round(pace, 1)} | {key: round(shares[key], 5) for key in shares}


def _sentence(job: TrainJob, line: Mapping[str, float]) -> str:
    parts = [f"{job.name} {line['iteration']}/{job.train_iters}"]
    parts += [
        f"{name} {line[name]:.4f} (perplexity {math.exp(min(line[name], 700)):.2f})"
        for name in ("loss", "valid_loss")
        if name in line
    ]
    if "tokens_per_second" in line:
        parts.append(f"{line['tokens_per_second']:,.0f} tokens/s")
    return ", ".join(parts)
