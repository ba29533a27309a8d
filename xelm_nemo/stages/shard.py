"""Stage `shard`: the tokenizer of the run, and every document tokenised into its cluster's shard."""

import dataclasses
import logging
from pathlib import Path

from xelm_nemo.artifacts import Recipe
from xelm_nemo.checkpoint.nemo_context import tokenizer_place
from xelm_nemo.clustering.assign import read_assignment
from xelm_nemo.corpus.tokenizer import load_tokenizer, train_tokenizer
from xelm_nemo.errors import ConfigError
from xelm_nemo.shards.build import total, write_counts, write_token_shards
from xelm_nemo.stages.run import Run
from xelm_nemo.stages.stage import Product, stage_of

log = logging.getLogger(__name__)


def tokenizer_source(run: Run) -> str | None:
    """Folder or hub id of the tokenizer to use; None: train one."""
    own, seed_model = run.config.tokenizer.path, run.config.seed_model
    if own is None and seed_model.source == "nemo":
        return tokenizer_place(Path(str(seed_model.path))) or seed_model.path
    return own or (seed_model.path if seed_model.source == "hf" else None)


def _tokenizer_recipe(run: Run) -> Recipe:
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
    tokenizer, clusters = load_tokenizer(run.tokenizer), run.config.clustering.num_clusters
    counts = {}
    for split in ("train", "valid"):
        cluster_of = read_assignment(run.clusters, run.split_name(split), num_clusters=clusters)
        counts[split] = write_token_shards(
            run.documents(split), cluster_of, tokenizer, num_clusters=clusters, split=split, folder=folder
        )
        documents, tokens = total(counts[split], "documents"), total(counts[split], "tokens")
        log.info("shard: %s has %d documents, %d tokens", split, documents, tokens)
    empty = [cluster for cluster, count in enumerate(counts["train"]) if count["tokens"] == 0]
    if empty:
        raise ConfigError(
            f"clustering.num_clusters={clusters} leaves clusters {empty} without a training document; "
            "lower it or cluster another way."
        )
    write_counts(folder, len(tokenizer), counts)


SHARD = stage_of(
    "shard",
    Product(lambda run: run.tokenizer, _tokenizer_recipe, _make_tokenizer),
    Product(lambda run: run.tokens, _tokens_recipe, _make_tokens),
)
