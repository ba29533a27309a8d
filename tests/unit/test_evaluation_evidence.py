"""Every rule through a whole evaluation, against loops over tokens and experts in plain Python."""

import math

import numpy as np
import pytest

from tests.helpers.bigrams import BigramModel, LetterTokenizer, encode, letter_clusterer, letter_shares
from xelm_nemo.ensemble.rules import random_squared_distances
from xelm_nemo.evaluation.config import RULES, EvaluationConfig
from xelm_nemo.evaluation.documents import EncodedDocument, HeldOutDocument
from xelm_nemo.evaluation.evidence import Text, evidence_of
from xelm_nemo.evaluation.perplexity import Models, evaluate_ensemble
from xelm_nemo.evaluation.scoring import ModelSource
from xelm_nemo.router.config import RouterConfig

CENTROIDS = np.array([[1, 0], [0, 1], [0.6, 0.8], [-0.2, 0.3]], dtype=np.float32)
DOCUMENTS = [
    HeldOutDocument("aa ab", "xx"),
    HeldOutDocument("bb", "yy"),
    HeldOutDocument("ab ba  a bb", "xx"),
    HeldOutDocument("", "yy"),
]
LANGUAGE_EXPERT = {"xx": 0, "yy": 2}
MODELS = [BigramModel(k) for k in range(4)]
SEED = 7


def measured(folder, router, there, **settings):
    experts = [
        ModelSource(f"expert{k}", str(k), lambda k=k: MODELS[k]) if k in there else None for k in range(4)
    ]
    settings = {"rules": list(RULES), "top_k": [None, 1, 2], "seed": SEED, "bootstrap_samples": 5} | settings
    (result,) = evaluate_ensemble(
        {"test": DOCUMENTS},
        models=Models(experts, None, settings.pop("seq_length", 100), {}),
        text=Text(LetterTokenizer(), encode, letter_clusterer(CENTROIDS), LANGUAGE_EXPERT),
        router=router,
        config=EvaluationConfig(**settings),
        folder=folder,
    )
    return {model.name: model.overall for model in result.of_kind("ensemble")}


def normalised(row):
    return [value / sum(row) for value in row]


def by_distance(squared, router):
    power = {"upstream": 2, "paper": 1}[router.rule]
    return normalised([math.exp(-(d**power) / router.temperature) for d in squared])


def kept(row, top_k):
    largest = sorted(range(len(row)), key=lambda k: -row[k])[:top_k]
    return normalised([weight if k in largest else 0.0 for k, weight in enumerate(row)])


def slow_weights(rule, document, j, router, there):
    """Weights of the experts at input token j, before top-k."""
    ids = encode(document.text)
    renewed = max(1, math.floor((len(ids) - 1) * router.cluster_ratio))

    def routed(j):
        vector = letter_shares(document.text[: max(min(j, renewed - 1) - 1, 0)])
        return by_distance([float(((vector - CENTROIDS[k]) ** 2).sum()) for k in there], router)

    uniform = [1 / len(there)] * len(there)
    said = [MODELS[k].probability(ids[j - 1], ids[j]) for k in there] if j else []
    if rule == "clustering":
        return routed(j)
    if rule == "bayes":
        return normalised(said) if j else uniform
    if rule == "product_of_experts":
        return normalised([p * w for p, w in zip(said, routed(j - 1), strict=True)]) if j else uniform
    if rule == "top1_language":
        return [float(k == LANGUAGE_EXPERT[document.lang]) for k in there]
    if rule == "random":
        encoded = EncodedDocument(tuple(ids), 0, False)
        known = evidence_of(
            document, encoded, language_expert=None, clusters=there, distance_TE=None, seed=SEED
        )
        return by_distance(random_squared_distances(len(ids) - 1, len(there), known.seed)[j].tolist(), router)
    return uniform


def slow_nats(rule, top_k, router, there):
    nats = 0.0
    for document in DOCUMENTS:
        ids = encode(document.text)
        for j in range(len(ids) - 1):
            weights = kept(slow_weights(rule, document, j, router, there), top_k)
            nats -= math.log(
                sum(
                    w * MODELS[k].probability(ids[j], ids[j + 1]) for w, k in zip(weights, there, strict=True)
                )
            )
    return nats


NAMES = {
    "clustering": "ensemble",
    "uniform": "uniform",
    "random": "random",
    "top1_language": "top-1 by language",
    "product_of_experts": "product of experts",
    "bayes": "bayes",
}
ROWS = [(rule, None) for rule in RULES] + [
    (rule, top_k) for rule in RULES if rule not in ("uniform", "top1_language") for top_k in (1, 2)
]


@pytest.mark.parametrize(
    "router, there, settings",
    [
        (RouterConfig(temperature=0.7), [0, 1, 2, 3], {}),
        (RouterConfig(temperature=0.3, rule="paper"), [0, 1, 2, 3], {"batch_tokens": 7}),
        (RouterConfig(temperature=0.7, cluster_ratio=0.5), [0, 1, 2, 3], {"each_expert": False}),
        (RouterConfig(temperature=0.7), [0, 2, 3], {"seq_length": 4, "stride": 2}),
    ],
    ids=["upstream", "paper", "half a document", "three experts, windows"],
)
def test_every_rule_at_every_top_k_is_the_slow_loops(tmp_path, router, there, settings):
    found = measured(tmp_path, router, there, **settings)
    expected = {
        NAMES[rule] + (f" top-{top_k}" if top_k else ""): slow_nats(rule, top_k, router, there)
        for rule, top_k in ROWS
    }
    assert {name: score.nats for name, score in found.items()} == pytest.approx(expected, rel=1e-5)
    assert all(score.num_tokens == sum(len(d.text) + 1 for d in DOCUMENTS) for score in found.values())
