"""What each cluster holds, for people."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from xelm_nemo.clustering.clusterer import Clusterer, TfidfClusterer
from xelm_nemo.clustering.documents import Documents

NO_LANGUAGE = "?"  # what a document without a language counts as
_NUM_TERMS = 10  # as upstream


def cluster_report(clusterer: Clusterer, documents: Documents, assignment: Sequence[int]) -> dict[str, Any]:
    """Size and language mix of each cluster, and for tf-idf the ten heaviest terms of its centroid.

    Returns:
        JSON values: `kind`, `num_clusters`, `num_documents`, and `clusters`, one object each of `cluster`,
        `documents`, `languages` (code -> documents, most first, "?" for none) and for tf-idf `top_terms`.
    """
    languages = [Counter[str]() for _ in range(clusterer.num_clusters)]
    for document, cluster in zip(documents, assignment, strict=True):
        languages[cluster][document.lang or NO_LANGUAGE] += 1
    clusters: list[dict[str, Any]] = [
        {"cluster": k, "documents": mix.total(), "languages": dict(sorted(mix.items(), key=_most_first))}
        for k, mix in enumerate(languages)
    ]
    if isinstance(clusterer, TfidfClusterer):
        for row, centroid in zip(clusters, clusterer.centroids, strict=True):
            row["top_terms"] = clusterer.features.top_terms(centroid, _NUM_TERMS)
    return {
        "kind": clusterer.kind,
        "num_clusters": clusterer.num_clusters,
        "num_documents": len(documents),
        "clusters": clusters,
    }


def report_markdown(report: dict[str, Any]) -> str:
    """The report as a heading and a Markdown table."""
    has_terms = "top_terms" in report["clusters"][0]
    header = ["cluster", "documents", "languages", *(["top terms"] if has_terms else [])]
    rows = [header, ["---"] * len(header)]
    for row in report["clusters"]:
        mix = " ".join(f"{lang} {count}" for lang, count in row["languages"].items())
        terms = " ".join(_code(term) for term in row.get("top_terms", []))
        rows.append([str(row["cluster"]), str(row["documents"]), mix, *([terms] if has_terms else [])])
    title = f"## {report['num_clusters']} clusters of {report['num_documents']} documents ({report['kind']})"
    return "\n".join([title, "", *(f"| {' | '.join(cells)} |" for cells in rows)]) + "\n"


def _most_first(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]


def _code(term: str) -> str:
    # Character n-grams hold spaces, and may hold what would end the code span or the table cell.
    return "`" + term.replace(" ", "␣").replace("`", "'").replace("|", "¦") + "`"
