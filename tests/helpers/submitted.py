"""What a run would submit to SLURM, without one."""

from xelm_nemo.stages import submit
from xelm_nemo.stages.pipeline import stages_of


def record_batches(monkeypatch):
    """Batches instead of jobs: the list that each goes to, as name, jobs, and what it waits for."""
    batches = []

    def take(batch, config, folder):
        batches.append((batch.name.removeprefix("run-"), [job.name for job in batch.jobs], batch.after))
        number = str(40 + len(batches))
        return [f"{number}_{k}" for k in range(len(batch.jobs))] if len(batch.jobs) > 1 else [number]

    monkeypatch.setattr(submit, "submit", take)
    return batches


def submit_all(run, verb="train", only=(), queued=None):
    """Submit what a verb lacks; the newest job of each name."""
    planned = submit.plan(run, stages_of(verb, run.config), verb, run.folder / "config.yaml", only)
    submit.submit_all(run, planned, run.folder, {} if queued is None else queued)
    return submit.recorded(run)
