"""What ensembles know of each document, which experts they need for it, and what they then say.

Shape letters: E experts, T scored tokens of a document, N documents.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xelm_nemo.ensemble.mixture import mixture_log_prob
from xelm_nemo.ensemble.rules import Ensemble, Evidence, ensemble_log_weights, experts_needed
from xelm_nemo.evaluation.documents import EncodedDocument, HeldOutDocument
from xelm_nemo.router.config import RouterConfig
from xelm_nemo.router.pieces import Decoder
from xelm_nemo.router.router import Router


class Clusterer(Protocol):
    """What evaluation asks of every clusterer; only a `TfidfClusterer` can place texts."""

    @property
    def num_clusters(self) -> int:
        """K, the number of experts that it is for."""


@dataclass(frozen=True)
class Text:
    """How text becomes tokens and clusters.

    Attributes:
        tokenizer: turns ids back into text, for the router.
        encode: text -> ids as the models were trained on, special tokens included.
        clusterer: routes prefixes if it can place texts (tf-idf).
        language_expert: language -> its expert's cluster, for the rule "top1_language".
    """

    tokenizer: Decoder
    encode: Callable[[str], Sequence[int]]
    clusterer: Clusterer
    language_expert: Mapping[str, int] | None


def routed(
    documents: Sequence[EncodedDocument], text: Text, router: RouterConfig, clusters: Sequence[int]
) -> Iterator[Tensor]:
    """Squared distance of each document's prefixes to the experts' centroids, float32 [T, E].

    Behind the router's share of a document the last ones hold.

    Args:
        documents: their tokens.
        text: tokenizer and clusterer.
        router: up to which token to look.
        clusters: the cluster of each expert that there is.

    Raises:
        ConfigError: the clusterer cannot place texts.
    """
    renewed = [max(1, math.floor(document.num_tokens * router.cluster_ratio)) for document in documents]
    looked_at = [document.ids[:count] for document, count in zip(documents, renewed, strict=True)]
    distances = Router(text.clusterer).prefix_squared_distances(looked_at, text.tokenizer)
    for document, count, distance_TK in zip(documents, renewed, distances, strict=True):
        rows_T = torch.arange(document.num_tokens).clamp(max=count - 1)
        yield distance_TK[rows_T][:, list(clusters)].float()


def evidence_of(
    document: HeldOutDocument,
    encoded: EncodedDocument,
    *,
    language_expert: Mapping[str, int] | None,
    clusters: Sequence[int],
    distance_TE: Tensor | None,
    seed: int,
) -> Evidence:
    """What is known of a document before any expert has read it.

    Args:
        document: its text and language.
        encoded: its tokens.
        language_expert: language -> its expert's cluster.
        clusters: the cluster of each expert that there is.
        distance_TE: as from `routed`, if it is wanted.
        seed: of the rule "random".
    """
    ids = np.array([seed, *encoded.ids], dtype="<i8").tobytes()
    expert = (language_expert or {}).get(document.lang or "")
    return Evidence(
        num_tokens=encoded.num_tokens,
        num_experts=len(clusters),
        distance_TE=distance_TE,
        language_expert=clusters.index(expert) if expert in clusters else None,
        # Of the content, so that neither other documents nor their order change a draw.
        seed=int.from_bytes(hashlib.sha256(ids).digest()[:7], "little"),
    )


def documents_of_experts(
    ensembles: Sequence[Ensemble], evidence: Sequence[Evidence], router: RouterConfig, num_experts: int
) -> list[list[int]]:
    """For each expert the documents in which an ensemble gives it weight at some token."""
    needed: list[list[int]] = [[] for _ in range(num_experts)]
    for n, known in enumerate(evidence):
        for expert in sorted({e for each in ensembles for e in experts_needed(each, known, router)}):
            needed[expert].append(n)
    return needed


def mixed_nats(
    ensembles: Sequence[Ensemble],
    evidence: Sequence[Evidence],
    encoded: Sequence[EncodedDocument],
    log_p_EN: Sequence[Mapping[int, Tensor]],
    router: RouterConfig,
) -> NDArray[np.float64]:
    """Negative log-probability of every document under every ensemble, [ensembles, N].

    Args:
        ensembles: what to mix.
        evidence: of each document.
        encoded: their tokens.
        log_p_EN: for each expert, document -> log-probabilities of its tokens; a document that the expert was
            not run on has no ensemble that gives it weight.
        router: temperature and rule.
    """
    nats = np.empty((len(ensembles), len(evidence)))
    for n, (known, document) in enumerate(zip(evidence, encoded, strict=True)):
        not_run_T = torch.full((known.num_tokens,), -torch.inf)
        log_p_ET = torch.stack([log_p_N.get(n, not_run_T) for log_p_N in log_p_EN])
        for row, ensemble in enumerate(ensembles):
            log_w_TE = ensemble_log_weights(ensemble, replace(known, log_p_ET=log_p_ET), router)
            nats[row, n] = nats_of(mixture_log_prob(log_p_ET, log_w_TE), document)
    return nats


def nats_of(log_p_T: Tensor, document: EncodedDocument) -> float:
    """Negative log-probability of a whole document, or of an example's target."""
    # float64: a float32 sum over a long document loses the digits that two models differ in.
    return -float(log_p_T[document.num_context :].double().sum())
