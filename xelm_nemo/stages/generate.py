"""What `generate` reads: an exported set, or a run whose experts have been exported."""

import dataclasses
from pathlib import Path

from xelm_nemo import artifacts
from xelm_nemo.artifacts import Recipe
from xelm_nemo.config.compose import from_yaml
from xelm_nemo.errors import ArtifactError
from xelm_nemo.generation.folder import write_set
from xelm_nemo.model.config import SparseConfig
from xelm_nemo.stages.run import CONFIG, Run

SET_NAME = "ensemble"


def find_set(source: Path) -> Path:
    """The folder of an exported set; a run's, `export/ensemble`, is made here when it is missing or stale.

    Raises:
        ArtifactError: the source is neither, or the run's experts have not been exported.
        ConfigError: the experts do not go together.
    """
    if (source / "config.json").is_file():
        return source
    if not (source / CONFIG).is_file():
        raise ArtifactError(
            f"{source} is no exported set and no run; give runs/<name>, or a folder with an exported set."
        )
    return ensemble_set(Run(dataclasses.replace(from_yaml(source / CONFIG), output=str(source))))


def ensemble_set(run: Run) -> Path:
    """`export/ensemble` of a run, made here when it is missing or stale.

    Raises:
        ArtifactError: the run's experts have not been exported.
        ConfigError: the experts do not go together.
    """
    experts = [run.export / f"expert{cluster}" for cluster in range(run.config.clustering.num_clusters)]
    missing = [expert.name for expert in experts if not expert.is_dir()]
    if missing and isinstance(run.sized.model, SparseConfig):
        raise ArtifactError(
            f"{run.folder} has experts with moe_experts, which are not exported; "
            "`python -m xelm_nemo.evaluate` scores them."
        )
    if missing:
        raise ArtifactError(
            f"{run.export} lacks {', '.join(missing)}; run `python -m xelm_nemo.export source={run.experts} "
            f"output={run.export}` first."
        )
    folder, router = run.export / SET_NAME, run.config.router
    inputs = {expert.name: expert for expert in experts}
    inputs |= {"clusterer": run.clusterer, "tokenizer": run.tokenizer}
    recipe = Recipe("ensemble", {"router": dataclasses.asdict(router)}, inputs)
    if not artifacts.is_current(folder, recipe):
        with artifacts.build(folder, recipe) as part:
            write_set(
                part, experts, clusterer=run.clusterer, tokenizer=run.tokenizer, router=router, home=folder
            )
    return folder
