"""The table of what a run would train, for `dry_run=true`."""

from rich import box
from rich.table import Table

from xelm_nemo.stages.jobs import round_jobs, seed_job
from xelm_nemo.stages.run import Run, inherited

_LISTED_CLUSTERS = 4


def models_table(run: Run) -> Table:
    """Every model that is to be trained, and those of the set that it is added to."""
    table, taken = Table(box=box.SIMPLE_HEAD, padding=0), inherited(run)  # eighty columns
    seed = [seed_job(run)] if run.config.seed_model.train_iters else []
    jobs, clusters = [*seed, *round_jobs(run)], run.config.clustering.num_clusters
    made_by = {str(expert.model): f"expert{cluster}" for cluster, expert in taken.items()}
    made_by |= {str(job.model_folder): job.name for job in jobs}
    has_parents = run.config.rounds.kind != "single"
    for name in ("model", *(["begins from"] if has_parents else [])):
        table.add_column(name, no_wrap=True)
    for name in ("clusters", "iterations", "batch", "tokens", "lr"):
        table.add_column(name, no_wrap=True)
    for name in (f"expert{cluster}" for cluster in taken):
        table.add_row(name, "stays as it is")
    for job in jobs:
        number = len(job.clusters)
        listed = f"all {number}" if number == clusters else f"{number} of {clusters}"
        table.add_row(
            job.name,
            *([made_by.get(job.init, "seed_model")] if has_parents else []),
            ",".join(map(str, job.clusters)) if number < _LISTED_CLUSTERS else listed,
            str(job.train_iters),
            str(job.global_batch_size),
            f"{job.train_iters * job.tokens_per_iteration:,}",
            f"{job.optim.lr:g}",
        )
    return table
