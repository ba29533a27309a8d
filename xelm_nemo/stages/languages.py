"""What a typology says beyond the clusters: its tree, and where languages that come later would go."""

from pathlib import Path

from xelm_nemo.clustering.clusterer import Clusterer, TypologyClusterer
from xelm_nemo.clustering.typology import nearest_donors
from xelm_nemo.evaluation.language_tree import draw_language_tree
from xelm_nemo.files import write_atomic

LANGUAGES_MD, LANGUAGES_PNG = "languages.md", "languages.png"


def write_languages(folder: Path, clusterer: Clusterer) -> None:
    """Write `languages.md` and `languages.png` beside a clusterer by language; nothing beside others."""
    if isinstance(clusterer, TypologyClusterer):
        write_atomic(folder / LANGUAGES_MD, _markdown(clusterer.cluster_of))
        if len(clusterer.cluster_of) > 1:
            draw_language_tree(folder / LANGUAGES_PNG, clusterer.cluster_of)


def _markdown(cluster_of: dict[str, int]) -> str:
    rows = [
        f"| {language} | {donor} | {distance:.3f} | {cluster_of[donor]} |"
        for language, (donor, distance) in nearest_donors(list(cluster_of)).items()
    ]
    members = [
        f"- {k}: {' '.join(lang for lang, cluster in cluster_of.items() if cluster == k)}"
        for k in sorted(set(cluster_of.values()))
    ]
    head = ["| new language | nearest donor | distance | its cluster |", "| --- | --- | --- | --- |"]
    return (
        "\n".join(["## Clusters", "", *members, "", "## Donors for new languages", "", *head, *rows]) + "\n"
    )
