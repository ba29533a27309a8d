"""The training loop of one model, expert or dense."""

import gc
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from xelm_nemo import device, parallel
from xelm_nemo.checkpoint import store
from xelm_nemo.checkpoint.facts import ModelFacts
from xelm_nemo.checkpoint.lazy import DTYPES
from xelm_nemo.checkpoint.masters import renew_weights
from xelm_nemo.errors import ConfigError, Stopped, TrainingError
from xelm_nemo.expert.best import Best
from xelm_nemo.expert.config import learning_rate
from xelm_nemo.expert.data import Batches, check_vocabulary
from xelm_nemo.expert.going_back import forget_later
from xelm_nemo.expert.graph import StepGraph, own_stream, why_no_graph_of
from xelm_nemo.expert.job import CHECKPOINTS, TrainJob
from xelm_nemo.expert.memory import check_memory, report_memory
from xelm_nemo.expert.optim import gather_weights, make_optimizer, set_learning_rate, wrap
from xelm_nemo.expert.screen import Screen
from xelm_nemo.expert.step import find_scales, forward_backward, seed_dropout, train_step, valid_loss
from xelm_nemo.expert.traces import Traces
from xelm_nemo.expert.watchdog import Watchdog
from xelm_nemo.files import write_json
from xelm_nemo.model.documents import mask_problem
from xelm_nemo.model.moe import forget_balance, gate_balance
from xelm_nemo.parallel import Layout

log = logging.getLogger(__name__)

BAD_STEPS = "bad_steps"  # in the job's folder: the tokens of steps whose gradient was no number


@dataclass(frozen=True)
class Watch:
    """What a run is tied to outside of its job: nothing, in a test or at a prompt.

    Attributes:
        stop: whether this rank has been asked to stop.
        at_step: told of every finished iteration.
        insist: called before a checkpoint or the model takes its name; returns only if the folder is ours.
    """

    stop: Callable[[], bool] = lambda: False
    at_step: Callable[[int], None] = lambda iteration: None
    insist: Callable[[], None] = lambda: None


def train(job: TrainJob, watch: Watch = Watch()) -> None:
    """Train the job's model from its newest checkpoint, or from its seed model, to `train_iters`.

    Killed at any moment and called again, it ends with the same weights, bit for bit: data order and
    dropout are functions of the iteration, and everything else is in the checkpoint.

    Raises:
        ConfigError: the tokenizer has ids that the model has no weights for, or this machine lacks something.
        TrainingError: the gradient or the loss is no longer finite; the last checkpoint stays.
        Stopped: a rank was asked to stop; the step it was in is finished and saved.
    """
    sizes, graphed = job.parallel, job.cuda_graphs and _can_graph(job)
    with (
        parallel.model_parallel(
            tensor_model_parallel_size=sizes.tensor_model_parallel_size,
            pipeline_model_parallel_size=sizes.pipeline_model_parallel_size,
            expert_model_parallel_size=sizes.expert_model_parallel_size,
            seed=job.seed,
            threads=job.threads,
            deterministic=job.deterministic,
            graphed=graphed,
            timeout_seconds=2 * job.step_timeout,  # the watchdog says more
        ) as layout,
        own_stream(),
    ):
        Trainer(job, layout, watch, graphed=graphed).run()


def _can_graph(job: TrainJob) -> bool:
    reason = why_no_graph_of(job)
    if reason and device.has_cuda():
        log.info("%s: steps are not run as CUDA graphs: %s", job.name, reason)
    return reason is None


class Trainer:
    """The state of one run: model, optimizer, data, and how far it has come."""

    def __init__(self, job: TrainJob, layout: Layout, watch: Watch, *, graphed: bool) -> None:
        """Build the model and take up the newest checkpoint."""
        folder = Path(job.folder)
        self.job, self.layout, self.watch = job, layout, watch
        check_vocabulary(job)
        if job.document_mask and (problem := mask_problem(deterministic=job.deterministic)):
            raise ConfigError(f"{problem}.")
        check_memory(job)
        if layout.rank == 0:
            report_memory(job)
        numbers: dict[str, Any] = {"dtype": DTYPES[job.dtype], "fp8": job.fp8}
        self.core = store.load_model(Path(job.init), job.parallel, shape=job.shape, **numbers)
        self.model = wrap(self.core, overlap_param_gather=not graphed)
        self.optimizer = make_optimizer(job.optim, self.model)
        self.batches = Batches(job, layout)
        run = partial(forward_backward, self.model, self.batches.micro_batches)
        self.graph = StepGraph(run) if graphed else None
        self.agreement = parallel.Agreement()
        self.checkpoints = store.Checkpoints(folder / CHECKPOINTS, self.agreement, keep=job.keep_last)
        self.iteration = self.saved = self.checkpoints.load_latest(self.core, self.optimizer)
        if self.iteration == 0 and job.fp8.param_gather:
            store.load_masters(Path(job.init), self.core, self.optimizer)
        self.loss = torch.zeros(())  # of the last step that counted, on its device
        self.bad_steps = 0  # in a row
        self.best = Best(job) if job.keep_best else None
        self.traces = Traces(job, layout.rank)
        words = self.core.real_vocab_size
        self.screen = Screen(job, resume_at=self.iteration, vocab_size=words) if layout.rank == 0 else None

    def run(self) -> None:
        """Train to the end and write the finished model."""
        job = self.job
        log.info("%s: from iteration %d to %d", job.name, self.iteration, job.train_iters)
        if not self.batches.can_validate:
            log.info("%s: no validation document in its clusters, so it trains without validation", job.name)
        self.model.train()
        self.checkpoints.expect(self.core)
        if self.iteration == 0 and job.fp8.recipe == "delayed":
            seed_dropout(job.seed, 0, self.layout)
            find_scales(self.model, self.batches.train(0))
            if job.fp8.param_gather:
                renew_weights(self.optimizer)  # at the scales that were found
        self._iterate_to_end()
        self.agreement.settle()
        self.traces.end()
        self.checkpoints.end()
        self._save_model()

    def _iterate_to_end(self) -> None:
        job = self.job
        self.watch.at_step(self.iteration)
        watchdog = Watchdog(job.name, job.step_timeout)
        gc.collect()
        gc.freeze()  # else saves, and steps now and then, look through all of Python's objects for garbage
        try:
            while self.iteration < job.train_iters:
                self._iterate()
                watchdog.beat(self.iteration)
        except TrainingError:  # what is being saved is from before, and finite
            self.checkpoints.end()
            raise
        except BaseException as error:
            self.checkpoints.abandon(error)
            raise
        finally:
            watchdog.end()
            gc.unfreeze()
            if self.graph is not None:
                self.graph.end()

    def _iterate(self) -> None:
        job = self.job
        if self.agreement.any(self.watch.stop()):
            self._stop()
        self.traces.turn_to(self.iteration + 1)
        loss, grad_norm = self._step()
        self.checkpoints.go_on()
        if not math.isfinite(grad_norm):
            self._leave_out(loss, grad_norm)
            return
        self.bad_steps, self.loss = 0, loss
        if self._due(job.log_interval):  # elsewhere the loss stays on its device: to look is to wait
            self._check_finite("loss", float(loss))
            tp = job.parallel.tensor_model_parallel_size
            gates = gate_balance(self.core, tensor_model_parallel_size=tp)
            waited = self.batches.waited_seconds
            self._show(loss=float(loss), grad_norm=grad_norm, waited_seconds=waited, **gates)
        if self.batches.can_validate and self._due(job.eval_interval):
            self._validate()
        # Beside the finished model, the last state is of use only if it stays.
        if self._due(job.save_interval) and (job.keep_optimizer or self.iteration < job.train_iters):
            self._save()

    def _validate(self) -> None:
        loss = float(valid_loss(self.model, *self.batches.valid()))
        self._show(valid_loss=loss)
        # Before the checkpoint: what is lost in between is made again, and is then no better.
        if self.best is not None and self._due(self.job.save_interval) and self.best.is_beaten_by(loss):
            gather_weights(self.model)
            self.best.keep(loss, self.core, self.optimizer, self._facts(), self.watch.insist)

    def _stop(self) -> None:
        self.traces.end()
        if self.saved < self.iteration:
            self._save()
        self.checkpoints.end()
        raise Stopped(f"{self.job.name}: stopped at iteration {self.iteration}, which is saved")

    @device.span("checkpoint")
    def _save(self) -> None:
        self._check_finite("loss", float(self.loss))
        gather_weights(self.model)
        self.checkpoints.begin(self.iteration, self.core, self.optimizer, before_naming=self.watch.insist)
        self.saved = self.iteration
        if self.layout.rank == 0:
            forget_later(self.job)

    def _step(self) -> tuple[torch.Tensor, float]:
        job = self.job
        set_learning_rate(self.optimizer, learning_rate(job.optim, self.iteration, job.train_iters))
        seed_dropout(job.seed, self.iteration, self.layout)
        batches = self.batches.train(self.iteration)
        loss, grad_norm = train_step(
            self.model,
            self.optimizer,
            batches,
            self.batches.micro_batches,
            before_update=self.checkpoints.wait_for_copy,
            graph=self.graph,
        )
        self.iteration += 1
        self.watch.at_step(self.iteration)
        return loss, grad_norm

    def _leave_out(self, loss: torch.Tensor, grad_norm: float) -> None:
        """Keep the batch of a step that changed nothing, for its gradient was no number; go on, or stop."""
        job, what = (
            self.job,
            f"{self.job.name}: the gradient norm is {grad_norm} at iteration {self.iteration}",
        )
        self.bad_steps += 1
        forget_balance(self.core)  # what gates have counted is of numbers that were none
        path = Path(job.folder) / BAD_STEPS / f"iter_{self.iteration:07d}.json"
        if self.layout.rank == 0:
            found = {"iteration": self.iteration, "grad_norm": str(grad_norm), "loss": str(float(loss))}
            write_json(path, found | {"tokens": self.batches.rows(self.iteration - 1).tolist()})
        if self.bad_steps > job.skip_bad_steps:
            raise TrainingError(
                f"{what}; the last checkpoint is whole. Lower optim.lr={job.optim.lr:g} or "
                f"optim.clip_grad={job.optim.clip_grad:g}, or leave such steps out with "
                f"training.skip_bad_steps; the step's tokens are in {path}."
            )
        log.warning("%s; the step is left out, its tokens are in %s", what, path)

    def _due(self, interval: int) -> bool:
        return self.iteration % interval == 0 or self.iteration == self.job.train_iters

    def _show(self, **values: float) -> None:
        if self.screen is not None:
            self.screen.show(self.iteration, values)

    def _check_finite(self, name: str, value: float) -> None:
        optim = self.job.optim
        if not math.isfinite(value):
            raise TrainingError(
                f"{self.job.name}: the {name} is {value} at iteration {self.iteration}; the last checkpoint "
                f"is whole. Lower optim.lr={optim.lr:g} or optim.clip_grad={optim.clip_grad:g}."
            )

    def _facts(self) -> ModelFacts:
        job = self.job
        return ModelFacts(
            shape=job.shape,
            vocab_size=self.core.real_vocab_size,
            dtype=job.dtype,
            tokenizer=job.tokenizer,
            iteration=self.iteration,
            consumed_tokens=job.tokens_before + self.iteration * job.tokens_per_iteration,
            parent=job.init,
            name=job.name,
        )

    def _save_model(self) -> None:
        job, facts = self.job, self._facts()
        gather_weights(self.model)
        trained = {"optimizer": self.optimizer, "before_naming": self.watch.insist}
        store.save_model(job.model_folder, self.core, facts, job.recipe(), **trained)
        log.info("%s: finished; the model is in %s", job.name, job.model_folder)
