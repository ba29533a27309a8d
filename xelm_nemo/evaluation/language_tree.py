"""The tree of languages by which clusters were made, as a picture."""

from collections.abc import Mapping
from pathlib import Path

from xelm_nemo.clustering.typology import language_distances, language_tree


def draw_language_tree(path: Path, cluster_of: Mapping[str, int]) -> None:
    """Draw the average-link tree of languages, each with its cluster, into a PNG file.

    Args:
        path: of the file.
        cluster_of: language -> cluster; two languages or more.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from scipy.cluster.hierarchy import dendrogram

    languages = list(cluster_of)
    figure = Figure(figsize=(6.0, 0.24 * len(languages) + 1.2))
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    labels = [f"{language}  ({cluster})" for language, cluster in cluster_of.items()]
    tree = language_tree(language_distances(languages))
    dendrogram(
        tree, ax=axes, orientation="left", labels=labels, color_threshold=0, above_threshold_color="#0072B2"
    )
    axes.set_xlabel("distance (1 - cosine of syntactic features)")
    axes.set_title("Languages by grammar, with their clusters", fontsize=10)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.savefig(path, dpi=150, bbox_inches="tight", metadata={"Software": None})
