"""The weights of the iteration whose validation loss is the lowest, whatever training does after it.

They are a model folder like the finished model, `best/iter_<n>` in the job's folder. Its manifest has the
loss, so that a restarted run knows what to beat.
"""

import dataclasses
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from xelm_nemo import artifacts, parallel
from xelm_nemo.checkpoint import store
from xelm_nemo.checkpoint.facts import ModelFacts
from xelm_nemo.checkpoint.iterations import iteration_folder, iteration_folders
from xelm_nemo.expert.job import BEST, TrainJob
from xelm_nemo.files import remove
from xelm_nemo.model.gpt import DecoderModel

log = logging.getLogger(__name__)

_LOSS = "valid_loss"  # in the manifest's settings


class Best:
    """What `checkpoint.keep_best` keeps."""

    def __init__(self, job: TrainJob) -> None:
        """Look up the lowest loss so far; all ranks do, before one of them writes."""
        self._job, self._folder = job, Path(job.folder) / BEST
        losses = [artifacts.check(path, "model")["recipe"]["settings"][_LOSS] for path in self._whole()]
        self._lowest: float = min(losses, default=math.inf)

    def is_beaten_by(self, loss: float) -> bool:
        """Whether a loss, the same on all ranks, is lower than all before."""
        return loss < self._lowest

    def keep(
        self,
        loss: float,
        model: DecoderModel,
        optimizer: Any,
        facts: ModelFacts,
        before_naming: Callable[[], None],
    ) -> None:
        """Keep these weights instead of the others, which go once they are whole.

        All ranks call it; a training state may be on its way to the disk meanwhile.

        Args:
            loss: of the validation.
            model: has all weights of its last step.
            optimizer: of the model.
            facts: of the model.
            before_naming: called on rank 0 when all is written.
        """
        self._lowest, path = loss, iteration_folder(self._folder, facts.iteration)
        recipe = self._job.recipe()
        settings = {**recipe.settings, "iteration": facts.iteration, _LOSS: loss}
        recipe = dataclasses.replace(recipe, settings=settings)
        store.save_model(path, model, facts, recipe, optimizer=optimizer, before_naming=before_naming)
        if dist.get_rank() == 0:
            for other in iteration_folders(self._folder).values():
                if other != path:
                    remove(other)
        parallel.barrier()
        log.info("%s: the lowest validation loss so far; the weights are in %s", self._job.name, path)

    def _whole(self) -> list[Path]:
        # One whose deletion was cut short may have its name still, and no manifest.
        folders = iteration_folders(self._folder).values()
        return [path for path in folders if (path / artifacts.MANIFEST).is_file()]
