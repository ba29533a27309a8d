"""What a run took from the finished set that it adds experts to, so that it is never taken from another."""

from typing import Any

from xelm_nemo import artifacts
from xelm_nemo.config.schema import RunConfig
from xelm_nemo.errors import RunFolderError
from xelm_nemo.files import read_json, write_json
from xelm_nemo.stages.run import Run, inherited

BASE = "base.json"


def record_base(run: Run) -> None:
    """Write into the run folder which set it is that the run adds to; what was said before goes.

    Raises:
        ArtifactError: the set is missing, or lacks an expert or its clusterer.
    """
    if run.base is None:
        (run.folder / BASE).unlink(missing_ok=True)
    else:
        write_json(run.folder / BASE, _contents(run.base, run), only_if_changed=True)


def check_recorded_base(run: Run, theirs: RunConfig) -> None:
    """See that the set is the one that was recorded, wherever it lies now.

    Args:
        run: the run, with the set where it is now said to be.
        theirs: the run's configuration when it was last taken up.

    Raises:
        ArtifactError: as `record_base`.
        RunFolderError: it is another set: to go on would train the run's experts anew, over the old ones.
    """
    if run.base is None or not (run.folder / BASE).is_file():
        return
    recorded, found = read_json(run.folder / BASE), _contents(run.base, run)
    others = [name for name in sorted({*recorded, *found}) if recorded.get(name) != found.get(name)]
    if others:
        raise RunFolderError(
            f"{run.folder} adds to the set that was in rounds.base={theirs.rounds.base!r}, and "
            f"rounds.base={run.config.rounds.base!r} holds another (its {', '.join(others)}); set "
            "rounds.base to where that set is now, or output=DIR to a new folder."
        )


def _contents(base: Run, run: Run) -> dict[str, Any]:
    """Digests, which speak of content: a set that was moved has the same."""
    models = {str(k): artifacts.check(found.model, "model")["digest"] for k, found in inherited(run).items()}
    return {"clusterer": artifacts.check(base.clusterer, "clusterer")["digest"], "experts": models}
