"""What each cluster holds, for people."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from xelm_nemo.clustering.clusterer import Clusterer, TfidfClusterer

NO_LANGUAGE = "?"  # what a document without a language counts as
_NUM_TERMS = 10  # as upstream
_SHOWN_FILES = 10

Languages = Sequence[Mapping[str, int]]  # for each cluster, documents by language


def cluster_report(
    clusterer: Clusterer, files: Sequence[Languages], skipped: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """Size and language mix of each cluster, and for tf-idf the ten heaviest terms of its centroid.

    Args:
        clusterer: the clusters' own.
        files: what each corpus file has in each cluster.
        skipped: `Skipped.as_json` of each file.

    Returns:
        JSON values: `kind`, `num_clusters`, `num_documents`, `largest_over_mean` (1 is perfect balance);
        `clusters`, one object each of `cluster`, `documents`, `share`, `languages` (code -> documents, most
        first, "?" for none) and for tf-idf `top_terms`; and `skipped`, of files with bad lines.
    """
    languages = [
        sum((Counter(file[k]) for file in files), Counter[str]()) for k in range(clusterer.num_clusters)
    ]
    total = sum(mix.total() for mix in languages)
    clusters: list[dict[str, Any]] = [
        {
            "cluster": k,
            "documents": mix.total(),
            "share": mix.total() / max(total, 1),
            "languages": dict(sorted(mix.items(), key=_most_first)),
        }
        for k, mix in enumerate(languages)
    ]
    if isinstance(clusterer, TfidfClusterer):
        for row, centroid in zip(clusters, clusterer.centroids, strict=True):
            row["top_terms"] = clusterer.features.top_terms(centroid, _NUM_TERMS)
    return {
        "kind": clusterer.kind,
        "num_clusters": clusterer.num_clusters,
        "num_documents": total,
        "largest_over_mean": max(row["share"] for row in clusters) * clusterer.num_clusters,
        "clusters": clusters,
        "skipped": [file for file in skipped if file["bad_lines"]],
    }


def report_markdown(report: dict[str, Any]) -> str:
    """The report as a heading, a Markdown table, and a list of files with bad lines."""
    has_terms = "top_terms" in report["clusters"][0]
    header = ["cluster", "documents", "share", "languages", *(["top terms"] if has_terms else [])]
    rows = [header, ["---"] * len(header)]
    for row in report["clusters"]:
        mix = " ".join(f"{lang} {count}" for lang, count in row["languages"].items())
        terms = " ".join(_code(term) for term in row.get("top_terms", []))
        numbers = [str(row["cluster"]), str(row["documents"]), f"{row['share']:.1%}"]
        rows.append([*numbers, mix, *([terms] if has_terms else [])])
    title = f"## {report['num_clusters']} clusters of {report['num_documents']} documents ({report['kind']})"
    balance = f"The largest cluster is {report['largest_over_mean']:.2f} times the mean."
    lines = [title, "", *(f"| {' | '.join(cells)} |" for cells in rows), "", balance]
    return "\n".join([*lines, *_skipped_markdown(report["skipped"])]) + "\n"


def _skipped_markdown(skipped: Sequence[Mapping[str, Any]]) -> list[str]:
    if not skipped:
        return []
    total = sum(file["bad_lines"] for file in skipped)
    kinds = sum((Counter(file["kinds"]) for file in skipped), Counter[str]())
    said = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items(), key=_most_first))
    more = len(skipped) - _SHOWN_FILES
    return [
        "",
        f"{total} bad lines were skipped ({said}):",
        "",
        *(f"- {file['file']}: {file['bad_lines']}" for file in skipped[:_SHOWN_FILES]),
        *([f"- and {more} more files"] if more > 0 else []),
    ]


def _most_first(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]


def _code(term: str) -> str:
    # Character n-grams hold spaces, and may hold what would end the code span or the table cell.
    return "`" + term.replace(" ", "␣").replace("`", "'").replace("|", "¦") + "`"
