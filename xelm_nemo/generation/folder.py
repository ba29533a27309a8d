"""Write what makes exported experts one set: a folder that `XelmForCausalLM` opens."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from xelm_nemo import artifacts
from xelm_nemo.clustering.clusterer import Clusterer, TfidfClusterer
from xelm_nemo.corpus.tokenizer import load_tokenizer
from xelm_nemo.errors import ConfigError
from xelm_nemo.router.config import RouterConfig


def write_set(
    folder: Path,
    experts: Sequence[Path],
    *,
    clusterer: Path,
    tokenizer: Path,
    router: RouterConfig,
    home: Path,
) -> None:
    """Write a set's configuration, its clusterer and its tokenizer; the experts stay where they are.

    Args:
        folder: an existing folder, to be filled.
        experts: Hugging Face folders in cluster order.
        clusterer: the one that the experts' clusters are of.
        tokenizer: of the experts.
        router: how to weigh; a clusterer that cannot place texts gives every expert the same weight.
        home: the name that `folder` will have; the experts are recorded relative to it.

    Raises:
        ConfigError: experts that do not go together, or are not as many as the clusterer's clusters.
    """
    # These import transformers' models.
    from xelm_nemo.generation.model import XelmConfig
    from xelm_nemo.generation.routing import CLUSTERER, mark_of
    from xelm_nemo.generation.siblings import shared_settings

    shared = shared_settings(experts)
    loaded = Clusterer.load(clusterer)
    if loaded.num_clusters != len(experts):
        raise ConfigError(
            f"{clusterer} has {loaded.num_clusters} clusters and the set {len(experts)} experts; "
            "give the clusterer that the experts were trained with."
        )
    weights = None if isinstance(loaded, TfidfClusterer) else [1 / len(experts)] * len(experts)
    ignored = shutil.ignore_patterns(artifacts.MANIFEST)
    shutil.copytree(clusterer, folder / CLUSTERER, ignore=ignored)
    load_tokenizer(tokenizer).save_pretrained(folder)
    XelmConfig(
        experts=[os.path.relpath(expert, home) for expert in experts],
        temperature=router.temperature,
        rule=router.rule,
        weights=weights,
        clusterer=mark_of(loaded),
        architectures=["XelmForCausalLM"],
        **shared,
    ).save_pretrained(folder)
