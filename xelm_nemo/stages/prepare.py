"""Stage `prepare`: a corpus in the layout that every other stage reads, shipped or made from raw files."""

import logging
from collections import Counter
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from xelm_nemo import artifacts
from xelm_nemo.artifacts import Recipe
from xelm_nemo.corpus import raw, udhr
from xelm_nemo.files import WORK, write_json
from xelm_nemo.launch import pool
from xelm_nemo.stages.run import Run
from xelm_nemo.stages.stage import Stage

log = logging.getLogger(__name__)

REPORT = "report.json"
_MOST_DEALS = 64  # what a kill loses at most is one of so many parts


def _recipes(run: Run) -> Mapping[Path, Recipe]:
    """The corpus, if it is made here; a user's corpus is read where it is."""
    corpus = run.config.corpus
    if corpus.path:
        return {}
    if corpus.raw:
        settings = {"languages": corpus.languages, "num_shards": corpus.num_shards, "seed": corpus.seed}
        return {run.corpus: Recipe("corpus", settings | run.corpus_keys(), {"raw": Path(corpus.raw)})}
    shipped = Path(str(files("xelm_nemo") / "data" / "udhr" / "udhr.jsonl"))
    held_out = {"test": list(udhr.TEST_ARTICLES), "valid": list(udhr.VALID_ARTICLES)}
    return {run.corpus: Recipe("corpus", {"builtin": "udhr"} | held_out, {"shipped": shipped})}


def _make(run: Run) -> None:
    for folder, recipe in _recipes(run).items():
        with artifacts.build(folder, recipe, resumable=bool(run.config.corpus.raw)) as part:
            counts = _from_raw(run, part) if run.config.corpus.raw else udhr.write_corpus(part)
        log.info("prepare: %s", ", ".join(f"{count} documents in {split}" for split, count in counts.items()))


def _from_raw(run: Run, folder: Path) -> dict[str, int]:
    """Deal all documents, then make all shards; split -> number of documents."""
    corpus, work = run.config.corpus, folder / WORK
    found = raw.list_raw(Path(str(corpus.raw)), corpus.languages)
    shards, buckets = raw.plan(found, corpus.num_shards)
    processes = run.processes(file.path for file in found)
    parts = min(len(found), _MOST_DEALS)
    folders = [work / "buckets" / str(part) for part in range(parts)]
    deals = {
        str(part): raw.Deal(
            found[part::parts],
            buckets,
            folders[part],
            corpus.seed,
            corpus.text_key,
            corpus.lang_key,
            run.skip_bad,
        )
        for part in range(parts)
    }
    rows = list(pool.results(raw.deal, deals, work / "dealt", processes=processes))
    tasks = {}
    for split, number in shards.items():
        each = buckets[split] // number
        for shard in range(number):
            own = range(shard * each, (shard + 1) * each)
            path = folder / split / f"{shard:05}" / raw.FILE
            tasks[f"{split}/{shard}"] = raw.MakeShard(split, own, folders, path)
    for _ in pool.results(raw.make_shard, tasks, work / "made", processes=processes):
        pass
    documents = {
        split: dict(sum((Counter(row["documents"].get(split, {})) for row in rows), Counter[str]()))
        for split in shards
    }
    skipped = [file for row in rows for file in row["skipped"] if file["bad_lines"]]
    write_json(folder / REPORT, {"documents": documents, "skipped": skipped})
    return {split: sum(counts.values()) for split, counts in documents.items()}


PREPARE = Stage("prepare", _recipes, _make)
