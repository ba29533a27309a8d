"""A run down the tree of four languages, its inputs and its finished models."""

import json

from xelm_nemo import artifacts
from xelm_nemo.artifacts import Recipe
from xelm_nemo.clustering.typology import typology_clusters
from xelm_nemo.config.compose import compose
from xelm_nemo.stages.claim import claim
from xelm_nemo.stages.run import Run, settled

TREE = [
    *("rounds=hmr", "clustering.num_clusters=4", "clustering.languages=[en,fr,ja,ko]"),
    *("training.global_batch_size=32", "launch=slurm", "launch.slurm.gpus_per_rank=0"),
]


def opened(tmp_path, *words):
    """The run, claimed."""
    run = Run(settled(compose([*TREE, f"output={tmp_path / 'run'}", *words])))
    run.folder.mkdir(exist_ok=True)
    claim(run)
    return run


def make_inputs(run, languages=("en", "fr", "ja", "ko")):
    """What jobs are made from, as empty artifacts, and a report with a language for each cluster."""
    for folder, kind in [(run.tokens, "tokens"), (run.seed_weights, "model"), (run.clusters, "clusters")]:
        with artifacts.build(folder, Recipe(kind, {})):
            pass
    rows = [
        {"cluster": k, "documents": 1, "languages": {lang: 1}}
        for lang, k in typology_clusters(languages, len(languages)).items()
    ]
    (run.clusters / "report.json").write_text(json.dumps({"clusters": rows}))


def finish(job, **content):
    """A job's model, of that content."""
    with artifacts.build(job.model_folder, job.recipe()) as part:
        (part / "content.json").write_text(json.dumps(content))
