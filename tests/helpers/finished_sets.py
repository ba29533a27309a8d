"""A run folder with a finished set of experts that nobody trained: what another run needs to add to it."""

import json

from xelm_nemo import artifacts
from xelm_nemo.artifacts import Recipe
from xelm_nemo.checkpoint.facts import ModelFacts, write_facts
from xelm_nemo.clustering.clusterer import TypologyClusterer
from xelm_nemo.clustering.typology import XELM_LANGUAGES, typology_clusters
from xelm_nemo.config.compose import compose, to_yaml
from xelm_nemo.model.config import ModelConfig
from xelm_nemo.stages.run import Run

SHAPE = ModelConfig(
    num_layers=2, hidden_size=32, ffn_hidden_size=64, num_attention_heads=4, max_position_embeddings=64
)


def write_finished_set(folder, num_experts=16, languages=XELM_LANGUAGES):
    """Write the folder; the experts, by typology, have facts and no weights."""
    words = ["clustering=typology", f"clustering.num_clusters={num_experts}", f"output={folder}"]
    run = Run(compose([*words, "training.global_batch_size=128"]))
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(run.config))
    cluster_of = typology_clusters(languages, num_experts)
    with artifacts.build(run.clusterer, Recipe("clusterer", {})) as part:
        TypologyClusterer(num_experts, cluster_of).save(part)
    with artifacts.build(run.tokenizer, Recipe("tokenizer", {})):
        pass
    mixes = [{lang: 10 for lang, k in cluster_of.items() if k == cluster} for cluster in range(num_experts)]
    rows = [{"cluster": k, "documents": 10 * len(mix), "languages": mix} for k, mix in enumerate(mixes)]
    with artifacts.build(run.clusters, Recipe("clusters", {})) as part:
        (part / "report.json").write_text(json.dumps({"clusters": rows}))
    for cluster in range(num_experts):
        with artifacts.build(
            run.experts / f"expert{cluster}/model", Recipe("model", {"of": cluster})
        ) as part:
            write_facts(part, ModelFacts(SHAPE, 300, "fp32", str(run.tokenizer), name=f"expert{cluster}"))
    experts = [
        {
            "name": f"expert{k}",
            "model": f"expert{k}/model",
            "cluster": k,
            "languages": list(mix),
            "documents": 10,
        }
        for k, mix in enumerate(mixes)
    ]
    (run.experts / "set.json").write_text(json.dumps({"round": 0, "experts": experts, "dense": None}))
    return run
