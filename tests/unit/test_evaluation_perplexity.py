import dataclasses
import math

import numpy as np
import pytest

from tests.helpers.bigrams import (
    BigramModel,
    LanguageClusterer,
    LetterClusterer,
    LetterShares,
    LetterTokenizer,
    encode,
)
from xelm_nemo.errors import ConfigError
from xelm_nemo.evaluation.config import EvaluationConfig
from xelm_nemo.evaluation.perplexity import evaluate_ensemble
from xelm_nemo.evaluation.scoring import HeldOutDocument, ModelSource
from xelm_nemo.router.config import RouterConfig

CENTROIDS = np.array([[1, 0], [0, 1], [0.6, 0.8]], dtype=np.float32)
DOCUMENTS = [
    HeldOutDocument("aa ab", "xx", 0),
    HeldOutDocument("bb", "yy", 1),
    HeldOutDocument("ab ba a", "xx", 2),
    HeldOutDocument("b bbb", "yy", 1),
]
LANGUAGE_EXPERT = {"xx": 0, "yy": 1}
MODELS = [BigramModel(k) for k in range(3)]
DENSE = BigramModel(9)
ROUTER = RouterConfig(temperature=0.7)


def sources(models=MODELS):
    return [ModelSource(f"expert{k}", str(k), lambda model=model: model) for k, model in enumerate(models)]


def evaluate(folder, **changes):
    arguments = {
        "dataset": "test",
        "experts": sources(),
        "dense": ModelSource("dense", "d", lambda: DENSE),
        "tokenizer": LetterTokenizer(),
        "encode": encode,
        "clusterer": LetterClusterer(LetterShares(), CENTROIDS),
        "language_expert": LANGUAGE_EXPERT,
        "seq_length": 100,
        "router": ROUTER,
        "config": EvaluationConfig(top_k=[1, 2], batch_size=3, bootstrap_samples=50),
        "folder": folder,
    }
    return evaluate_ensemble(DOCUMENTS, **(arguments | changes))


def slow_router(prefix, top_k):
    """Upstream's weights by the definition, one prefix at a time."""
    vector = LetterShares().transform([prefix])[0]
    raw = [math.exp(-(float(((vector - c) ** 2).sum()) ** 2) / ROUTER.temperature) for c in CENTROIDS]
    keep = sorted(range(len(raw)), key=lambda k: -raw[k])[:top_k]
    return [raw[k] / sum(raw[i] for i in keep) if k in keep else 0.0 for k in range(len(raw))]


def slow_perplexity(weights_of, documents=DOCUMENTS):
    """Perplexity with weights_of(document, text before the input token) -> weights of the experts."""
    nats, count = 0.0, 0
    for document in documents:
        ids = encode(document.text)
        for j in range(len(ids) - 1):
            weights = weights_of(document, document.text[: max(j - 1, 0)])
            probability = sum(
                weight * model.probability(ids[j], ids[j + 1])
                for weight, model in zip(weights, MODELS, strict=True)
            )
            nats, count = nats - math.log(probability), count + 1
    return math.exp(nats / count)


def test_every_row_is_there_in_order(tmp_path):
    assert [(model.kind, model.name) for model in evaluate(tmp_path).models] == [
        ("expert", "expert0"),
        ("expert", "expert1"),
        ("expert", "expert2"),
        ("dense", "dense"),
        ("ensemble", "ensemble"),
        ("ensemble", "ensemble top-1"),
        ("ensemble", "ensemble top-2"),
        ("ensemble", "top-1 by language"),
    ]


@pytest.mark.parametrize("name, top_k", [("ensemble", 3), ("ensemble top-1", 1), ("ensemble top-2", 2)])
def test_ensemble_perplexity_is_the_slow_loops(tmp_path, name, top_k):
    expected = slow_perplexity(lambda document, prefix: slow_router(prefix, top_k))
    assert evaluate(tmp_path).model(name).overall.perplexity == pytest.approx(expected, rel=1e-5)


def test_one_expert_by_language_is_the_slow_loops(tmp_path):
    def one_hot(document, prefix):
        return [float(k == LANGUAGE_EXPERT[document.lang]) for k in range(3)]

    result = evaluate(tmp_path)
    assert result.model("top-1 by language").overall.perplexity == pytest.approx(slow_perplexity(one_hot))
    assert result.model("top-1 by language").by_language["yy"] == result.model("expert1").by_language["yy"]


def test_languages_and_clusters_are_summed_apart(tmp_path):
    result = evaluate(tmp_path)
    score = result.model("expert2").by_language["xx"]
    of_xx = [document for document in DOCUMENTS if document.lang == "xx"]
    assert score.perplexity == pytest.approx(slow_perplexity(lambda document, prefix: [0, 0, 1], of_xx))
    assert (score.num_tokens, score.num_bytes) == (6 + 8, 5 + 7)
    assert result.model("expert2").by_cluster[1] == result.model("expert2").by_language["yy"]
    assert result.documents == {"xx": {0: 1, 1: 0, 2: 1}, "yy": {0: 0, 1: 2, 2: 0}}


def test_bits_per_byte_count_every_nat_once(tmp_path):
    score = evaluate(tmp_path).model("dense").overall
    assert score.bits_per_byte == pytest.approx(
        math.log2(score.perplexity) * score.num_tokens / score.num_bytes
    )


def test_an_ensemble_of_one_expert_is_that_expert(tmp_path):
    clusterer = LetterClusterer(LetterShares(), CENTROIDS[:1])
    result = evaluate(
        tmp_path, experts=sources(MODELS[:1]), clusterer=clusterer, language_expert=None, dense=None
    )
    assert [model.name for model in result.models] == ["expert0", "ensemble"]
    assert result.model("ensemble").overall == result.model("expert0").overall
    assert result.comparison.ratio == 1.0


def test_ensemble_and_baseline_are_resampled_together(tmp_path):
    clusterer = LetterClusterer(LetterShares(), CENTROIDS[:1])
    twin = ModelSource("dense", "d", lambda: MODELS[0])
    result = evaluate(
        tmp_path, experts=sources(MODELS[:1]), clusterer=clusterer, language_expert=None, dense=twin
    )
    low, high = result.headline.interval
    assert low < result.headline.overall.perplexity < high
    assert result.comparison.interval == (1.0, 1.0)


def test_without_a_dense_model_the_best_expert_is_the_baseline(tmp_path):
    result = evaluate(tmp_path, dense=None)
    best = min(result.of_kind("expert"), key=lambda model: model.overall.nats)
    assert result.comparison.baseline == best.name


def test_one_model_is_in_memory_at_a_time(tmp_path):
    alive, most = set(), []

    class Counted(BigramModel):
        def __init__(self, seed):
            super().__init__(seed)
            alive.add(id(self))
            most.append(len(alive))

        def __del__(self):
            alive.discard(id(self))

    experts = [ModelSource(f"expert{k}", str(k), lambda k=k: Counted(k)) for k in range(3)]
    evaluate(tmp_path, experts=experts)
    assert most == [1, 1, 1]


def test_an_interrupted_evaluation_goes_on_and_ends_the_same(tmp_path):
    def killed():
        raise KeyboardInterrupt

    def loaded_twice():
        raise AssertionError("expert0 was scored before the interruption")

    first, second, third = sources()
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path, experts=[first, dataclasses.replace(second, load=killed), third])
    resumed = evaluate(tmp_path, experts=[dataclasses.replace(first, load=loaded_twice), second, third])
    assert resumed == evaluate(tmp_path / "fresh")


def test_tokens_are_compared_only_where_all_are_known(tmp_path):
    experts = {f"expert{k}": 10 for k in range(3)}
    assert evaluate(tmp_path, training_tokens=experts | {"dense": 30}).comparison.has_equal_tokens is True
    assert evaluate(tmp_path, training_tokens=experts | {"dense": 31}).comparison.has_equal_tokens is False
    assert evaluate(tmp_path, training_tokens=experts).comparison.has_equal_tokens is None


def test_documents_without_language_or_cluster_count_overall_only(tmp_path):
    plain = [HeldOutDocument(document.text) for document in DOCUMENTS]
    arguments = {"language_expert": None, "config": EvaluationConfig(bootstrap_samples=5)}
    known = evaluate(tmp_path, **arguments)
    result = evaluate_ensemble(
        plain,
        dataset="test",
        experts=sources(),
        dense=None,
        tokenizer=LetterTokenizer(),
        encode=encode,
        clusterer=LetterClusterer(LetterShares(), CENTROIDS),
        seq_length=100,
        router=ROUTER,
        folder=tmp_path,
        **arguments,
    )
    assert result.headline.overall == known.headline.overall
    assert result.languages == result.clusters == []


@pytest.mark.parametrize("known", [{}, {"xx": 0}])
def test_without_an_expert_for_every_language_none_is_chosen_by_language(tmp_path, known):
    names = [model.name for model in evaluate(tmp_path, language_expert=known).models]
    assert names[4:] == ["ensemble", "ensemble top-1", "ensemble top-2"]
    with pytest.raises(ConfigError, match="top1_language"):
        evaluate(tmp_path, language_expert=known, config=EvaluationConfig(rules=["top1_language"]))


def test_the_number_of_experts_is_checked_before_any_model_is_loaded(tmp_path):
    with pytest.raises(ConfigError, match=r"clustering\.num_clusters=5"):
        evaluate(tmp_path, clusterer=LanguageClusterer(5))
    assert not list(tmp_path.iterdir())
