"""Which jobs of earlier submissions are under way, and which steps of a stage are left to submit."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xelm_nemo.errors import LaunchError
from xelm_nemo.launch import slurm
from xelm_nemo.launch.job import Job
from xelm_nemo.launch.state import FINISHED, read_state

Queue = dict[str, slurm.Queued] | None  # None: SLURM is down


def is_alive(record: Any, folder: Path, queued: Queue) -> bool:
    """Whether a job runs or will run: SLURM says so or, when SLURM is down, the job's own state."""
    state = read_state(folder)
    if state and state.end is None and not state.is_silent:
        return True
    if record is None or queued is None:
        return False
    return record["job"] in queued and queued[record["job"]].is_active


def left(
    steps: Sequence[Sequence[Job]], records: Mapping[str, Any], queued: Queue
) -> tuple[Sequence[Sequence[Job]], set[str]]:
    """The steps of a stage that have yet to end, and the names of jobs in them that need not be submitted.

    What shares write into is theirs as long as one of them lives: it is not begun again.

    Raises:
        LaunchError: jobs of an earlier submission share the files in another number.
    """
    _check_number(steps, records, queued)
    alive = {
        job.name for step in steps for job in step if is_alive(records.get(job.name), job.folder, queued)
    }
    *_, shares, (last,) = [[], *steps]
    ended = {job.name for job in shares if has_finished(records.get(job.name), job.folder)}
    if last.name in alive and all(job.name in alive | ended for job in shares):
        return [[last]], alive
    if not any(job.name in alive for job in shares):
        return steps, alive - {last.name}
    # What has yet to begin is what the shares wait for, those that are submitted again too.
    begin = [[job] for step in steps[:-2] for job in step if job.name in alive]
    return [*begin, [job for job in shares if job.name not in ended], [last]], alive - {last.name}


def _check_number(steps: Sequence[Sequence[Job]], records: Mapping[str, Any], queued: Queue) -> None:
    verb, own = steps[-1][0].name, {job.name for step in steps for job in step}
    others = {name: records[name] for name in records.keys() - own if name.startswith(f"{verb}-")}
    alive = [one["job"] for one in others.values() if is_alive(one, Path(one["folder"]), queued)]
    if alive:
        raise LaunchError(
            f"launch.slurm.file_jobs is not what it was when SLURM jobs {', '.join(sorted(alive))} were "
            f"submitted, which share the files of {verb}; set it as it was, or end them with "
            "`python -m xelm_nemo.cancel` first."
        )


def has_finished(record: Any, folder: Path) -> bool:
    """Whether the newest job of a name has done what it was to do."""
    state = read_state(folder)
    own = state if state and record and state.job == record["job"] else None
    return bool(own and own.end and own.end.reason == FINISHED)
