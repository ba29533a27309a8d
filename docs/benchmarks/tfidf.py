"""Speed of the featuriser beside scikit-learn's, alternating in one process.

`python docs/benchmarks/tfidf.py FOLDER`, where FOLDER holds <language>.jsonl with a `text` a line. A row is a
JSON object: best of REPETITIONS, in MB of UTF-8 a second; one thread by the time that its core worked for it,
two threads by the clock.
"""

import json
import os
import re
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer as Peer

from xelm_nemo.clustering.tfidf import TfidfVectorizer

REPETITIONS, MOST_MB = 3, 5
WORD = r"(?u)\b\w\w+\b"


def upstream_words(text: str) -> list[str]:
    """What upstream's tokenizer leaves of a text."""
    return [word for word in re.findall(WORD, text) if not word[0].isdigit()]


def main(folder: Path) -> None:
    """Measure every language, then all together."""
    corpora = {path.stem: texts_of(path) for path in sorted(folder.glob("*.jsonl"))}
    corpora["all"] = [text for texts in corpora.values() for text in texts]
    for name, texts in corpora.items():
        row(name, "word", texts, Peer(tokenizer=upstream_words, token_pattern=None), Peer())
    mixed = corpora["all"][::8]
    row("all, every 8th", "char_wb", mixed, Peer(analyzer="char_wb", ngram_range=(1, 3)))


def texts_of(path: Path) -> list[str]:
    """The first documents of a file, up to MOST_MB."""
    texts, num_bytes = [], 0.0
    for line in path.open(encoding="utf-8"):
        texts.append(json.loads(line)["text"])
        num_bytes += len(texts[-1].encode())
        if num_bytes > MOST_MB * 1e6:
            break
    return texts


def row(name: str, analyzer: str, texts: list[str], *peers: Peer) -> None:
    """Fit and transform by each, and show how fast they were."""
    settings = {"analyzer": analyzer, "ngram_range": (1, 3) if analyzer == "char_wb" else (1, 1)}
    ours = [TfidfVectorizer(num_threads=number, **settings) for number in (1, 2)]
    found: dict[str, object] = {"corpus": name, "analyzer": analyzer, "load": os.getloadavg()[0]}
    for verb in ("fit", "transform"):
        work = [*(getattr(one, verb) for one in ours), *(getattr(peer, verb) for peer in peers)]
        clocks = [time.thread_time, time.perf_counter, *(time.thread_time for _ in peers)]
        names = ("ours", "ours_2_threads_wall", "upstream", "scikit_learn")
        speeds = dict(zip(names, measured(texts, work, clocks), strict=False))
        found[verb] = speeds | {"ratio_to_upstream": round(speeds["ours"] / speeds["upstream"], 1)}
    rows, expected = ours[0].transform(texts), peers[0].transform(texts)
    found["same_bits"] = all(
        np.array_equal(getattr(rows, part), getattr(expected, part)) for part in ("indptr", "indices", "data")
    )
    found["terms"] = len(ours[0].terms_)
    found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


def measured(
    texts: list[str], work: list[Callable[[list[str]], object]], clocks: list[Callable[[], float]]
) -> list[float]:
    """The best speed of each piece of work, all of them in turn."""
    best = [float("inf")] * len(work)
    for _ in range(REPETITIONS):
        for i, (do, clock) in enumerate(zip(work, clocks, strict=True)):
            start = clock()
            do(texts)
            best[i] = min(best[i], clock() - start)
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    return [round(megabytes / seconds, 1) for seconds in best]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
