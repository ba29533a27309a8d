"""What the job of a stage does."""

from collections.abc import Sequence
from pathlib import Path

from xelm_nemo.errors import ArtifactError
from xelm_nemo.expert.job import TrainJob
from xelm_nemo.launch.state import read_state
from xelm_nemo.stages.evaluate import EVALUATE
from xelm_nemo.stages.jobs import is_finished, round_jobs
from xelm_nemo.stages.pipeline import make, stages_of
from xelm_nemo.stages.run import Run
from xelm_nemo.stages.stage import Stage
from xelm_nemo.stages.train import TRAIN


def make_verb(run: Run, verb: str) -> None:
    """Make what the verb makes; where it stands after training, from the experts that there are.

    With `evaluation.allow_missing` those are evaluated when others failed.

    Raises:
        ArtifactError: an expert is missing (names each, and why it failed).
    """
    stages = stages_of(verb, run.config)
    if TRAIN in stages:
        TRAIN.finish(run)
        if missing := [job for job in round_jobs(run) if not is_finished(job)]:
            stages = _without(run, missing, stages)
    make(run, stages)


def begin_verb(run: Run, verb: str) -> None:
    """Make what comes before the verb, and what jobs that share its files need."""
    *before, stage = stages_of(verb, run.config)
    make(run, before)
    stage.begin(run)


def share_verb(run: Run, verb: str, part: int, parts: int) -> None:
    """Do one of so many parts of the verb's files."""
    stages_of(verb, run.config)[-1].share(run, part, parts)


def _without(run: Run, missing: Sequence[TrainJob], stages: list[Stage]) -> list[Stage]:
    """What can be made without some models, which this job is not to train."""
    after = stages[stages.index(TRAIN) + 1 :]
    some = len(missing) < len(round_jobs(run))
    if run.config.evaluation.allow_missing and EVALUATE in after and some:
        return after
    said = []
    for job in missing:
        state = read_state(Path(job.folder))
        why = f": {state.end.message or state.end.reason}" if state and state.end else ""
        said.append(job.name + why)
    raise ArtifactError(
        f"{run.experts} lacks {', '.join(said)}; mend it, then `python -m xelm_nemo.retry` trains those."
    )
