"""Stage `shard`: the tokenizer of the run, and every document tokenised into its cluster's shard."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

from xelm_nemo import artifacts
from xelm_nemo.artifacts import Recipe
from xelm_nemo.checkpoint.facts import load_facts
from xelm_nemo.checkpoint.nemo_context import read_context
from xelm_nemo.corpus.layout import list_files
from xelm_nemo.corpus.tokenizer import load_tokenizer, train_tokenizer
from xelm_nemo.errors import ConfigError
from xelm_nemo.files import WORK, remove
from xelm_nemo.launch import pool
from xelm_nemo.shards.build import (
    JoinPieces,
    TokeniseFile,
    join_pieces,
    shard_prefix,
    token_dtype,
    tokenise_file,
    total,
    write_counts,
)
from xelm_nemo.stages.rounds import rounds_of
from xelm_nemo.stages.run import Run
from xelm_nemo.stages.stage import Product, stage_of

log = logging.getLogger(__name__)

_EASE_OF_COPYING = 64
_ALL = slice(None)


def tokenizer_source(run: Run) -> str | None:
    """Folder or hub id of the tokenizer to use; None: train one."""
    own, seed_model = run.config.tokenizer.path, run.config.seed_model
    if run.base is not None:  # weights know its ids
        return str(run.base.tokenizer)
    if own is None and seed_model.source == "nemo":
        return read_context(Path(str(seed_model.path))).tokenizer or seed_model.path
    if own is None and seed_model.source == "model":
        return load_facts(Path(str(seed_model.path))).tokenizer
    return own or (seed_model.path if seed_model.source == "hf" else None)


def _tokenizer_recipe(run: Run) -> Recipe:
    if run.base is not None:  # which may move
        return Recipe("tokenizer", {}, {"source": run.base.tokenizer})
    source = tokenizer_source(run)
    if source is None:
        settings = dataclasses.asdict(run.config.tokenizer) | run.corpus_keys()
        return Recipe("tokenizer", settings, {"train": run.split("train")})
    return Recipe("tokenizer", {"path": source}, {"source": Path(source)} if Path(source).is_dir() else {})


def _make_tokenizer(run: Run, folder: Path) -> None:
    source = tokenizer_source(run)
    if source is None:
        texts = (document.text for document in run.documents("train"))
        train_tokenizer(texts, run.config.tokenizer, folder)
    else:
        load_tokenizer(source).save_pretrained(folder)


def _tokens_recipe(run: Run) -> Recipe:
    settings = {"num_clusters": run.config.clustering.num_clusters} | run.corpus_keys()
    inputs = {"tokenizer": run.tokenizer, "clusters": run.clusters}
    return Recipe("tokens", settings, inputs | {split: run.split(split) for split in ("train", "valid")})


def _make_tokens(run: Run, folder: Path) -> None:
    clusters = run.config.clustering.num_clusters
    vocab_size, counts = len(load_tokenizer(run.tokenizer)), {}
    for split in ("train", "valid"):
        counts[split] = _tokenise(run, folder, split, token_dtype(vocab_size).__name__)
        documents, tokens = total(counts[split], "documents"), total(counts[split], "tokens")
        log.info("shard: %s has %d documents, %d tokens", split, documents, tokens)
    read = {cluster for experts in rounds_of(run) for expert in experts for cluster in expert.reads}
    empty = [k for k, count in enumerate(counts["train"]) if count["tokens"] == 0 and k in read]
    if empty:
        raise ConfigError(
            f"clustering.num_clusters={clusters} leaves clusters {empty} without a training document; "
            "lower it or cluster another way."
        )
    write_counts(folder, vocab_size, counts)


def _tokenise(run: Run, folder: Path, split: str, dtype: str) -> list[dict[str, int]]:
    """Tokenise a split file by file, then join each cluster's pieces; what there is of each cluster."""
    clusters, work = run.config.clustering.num_clusters, folder / WORK / split
    rows, files = _tokenise_files(run, folder, split), list_files(run.corpus, run.split_name(split))
    pieces = [_pieces(folder, split, number) for number in range(len(files))]
    join = {str(k): JoinPieces(pieces, k, dtype, shard_prefix(folder, k, split)) for k in range(clusters)}
    processes = run.processes(files, ease=_EASE_OF_COPYING)
    for _ in pool.results(join_pieces, join, work / "joined", processes=processes):
        pass
    remove(work / "pieces")
    return [
        {key: sum(row["counts"][k][key] for row in rows) for key in ("documents", "tokens")}
        for k in range(clusters)
    ]


def _tokenise_files(run: Run, folder: Path, split: str, some: slice = _ALL) -> list[dict[str, Any]]:
    """What `tokenise_file` says of each file of a split, or of some."""
    clusters, tokenizer = run.config.clustering.num_clusters, run.tokenizer
    digest = artifacts.check(tokenizer, "tokenizer")["digest"]
    files = list(enumerate(list_files(run.corpus, run.split_name(split))))[some]
    tasks = {
        str(number): TokeniseFile(
            run.corpus,
            path,
            run.corpus_keys(),
            run.skip_bad,
            run.clusters,
            clusters,
            tokenizer,
            digest,
            _pieces(folder, split, number),
        )
        for number, path in files
    }
    done, processes = folder / WORK / split / "tokenised", run.processes(path for _, path in files)
    return list(pool.results(tokenise_file, tasks, done, processes=processes))


def _pieces(folder: Path, split: str, number: int) -> Path:
    return folder / WORK / split / "pieces" / str(number)


def _share(run: Run, folder: Path, some: slice) -> None:
    for split in ("train", "valid"):
        _tokenise_files(run, folder, split, some)


SHARD = stage_of(
    "shard",
    Product(lambda run: run.tokenizer, _tokenizer_recipe, _make_tokenizer),
    Product(lambda run: run.tokens, _tokens_recipe, _make_tokens, resumable=True, share=_share),
)
