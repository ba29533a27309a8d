import dataclasses
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.helpers.bigrams import (
    BigramModel,
    LanguageClusterer,
    LetterTokenizer,
    encode,
    letter_clusterer,
    letter_shares,
)
from xelm_nemo.ensemble.placement import Team
from xelm_nemo.errors import ConfigError, CorpusError
from xelm_nemo.evaluation.config import EvaluationConfig
from xelm_nemo.evaluation.documents import HeldOutDocument
from xelm_nemo.evaluation.evidence import Text
from xelm_nemo.evaluation.perplexity import ALONE, Models, evaluate_ensemble
from xelm_nemo.evaluation.report import report_markdown, verdict
from xelm_nemo.evaluation.result import read_results, write_results
from xelm_nemo.evaluation.scoring import ModelSource
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


DENSE_SOURCE = ModelSource("dense", "d", lambda: DENSE)
CLUSTERER = letter_clusterer(CENTROIDS)


def evaluate_subsets(
    folder,
    subsets,
    *,
    experts=None,
    dense=DENSE_SOURCE,
    clusterer=CLUSTERER,
    language_expert=LANGUAGE_EXPERT,
    training_tokens=None,
    router=ROUTER,
    seq_length=100,
    team=ALONE,
    **settings,
):
    settings = {"top_k": [None, 1, 2], "batch_tokens": 30, "bootstrap_samples": 50} | settings
    return evaluate_ensemble(
        subsets,
        models=Models(sources() if experts is None else experts, dense, seq_length, training_tokens or {}),
        text=Text(LetterTokenizer(), encode, clusterer, language_expert),
        router=router,
        config=EvaluationConfig(**settings),
        folder=folder,
        team=team,
    )


def evaluate(folder, documents=DOCUMENTS, **changes):
    (result,) = evaluate_subsets(folder, {"test": documents}, **changes)
    return result


def slow_router(prefix, top_k, temperature=ROUTER.temperature):
    """Upstream's weights by the definition, one prefix at a time."""
    vector = letter_shares(prefix)
    raw = [math.exp(-(float(((vector - c) ** 2).sum()) ** 2) / temperature) for c in CENTROIDS]
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
    clusterer = letter_clusterer(CENTROIDS[:1])
    result = evaluate(
        tmp_path, experts=sources(MODELS[:1]), clusterer=clusterer, language_expert=None, dense=None
    )
    assert [model.name for model in result.models] == ["expert0", "ensemble"]
    assert result.model("ensemble").overall == result.model("expert0").overall
    assert result.comparison.ratio == 1.0


def test_ensemble_and_baseline_are_resampled_together(tmp_path):
    clusterer = letter_clusterer(CENTROIDS[:1])
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


@pytest.mark.parametrize("seq_length, stride", [(100, None), (8, None), (4, 2)])
def test_of_an_example_the_target_counts_and_the_source_routes(tmp_path, seq_length, stride):
    examples = [HeldOutDocument("aa ab", source="aa"), HeldOutDocument("ab ba abbbba", source="ab ba")]
    result = evaluate(tmp_path, examples, language_expert=None, seq_length=seq_length, stride=stride)
    kept = None if stride else seq_length
    nats, count = {"dense": 0.0, "ensemble": 0.0}, 0
    for example in examples:
        ids = encode(example.text)[: kept and kept + 1]
        for j in range(len(example.source), len(ids) - 1):
            weights = slow_router(example.text[: max(j - 1, 0)], 3)
            mixed = sum(
                w * model.probability(*ids[j : j + 2]) for w, model in zip(weights, MODELS, strict=True)
            )
            nats["ensemble"] -= math.log(mixed)
            nats["dense"] -= math.log(DENSE.probability(*ids[j : j + 2]))
            count += 1
    for name, expected in nats.items():
        overall = result.model(name).overall
        assert overall.num_tokens == count and overall.nats == pytest.approx(expected, rel=1e-5)
    assert overall.num_bytes == count - (1 if seq_length == 8 else 2)  # ends are tokens without bytes


def test_source_that_leaves_no_target_in_the_context_is_refused(tmp_path):
    examples = [HeldOutDocument("ab ba abb", source="ab ba")]
    with pytest.raises(CorpusError, match=r"fills training\.seq_length=5, .* set evaluation\.stride"):
        evaluate(tmp_path, examples, language_expert=None, seq_length=5)


def test_examples_without_a_target_in_the_context_are_left_out_and_counted(tmp_path, caplog):
    kept = [HeldOutDocument("aa ab", source="aa"), HeldOutDocument("ab b", source="ab")]
    long = [HeldOutDocument("ab ba abb", source="ab ba"), HeldOutDocument("b" * 9, source="b" * 8)]
    examples = {"one": [long[0], kept[0], long[1], kept[1]], "other": kept}
    how = {"language_expert": None, "seq_length": 5}
    one, other = evaluate_subsets(tmp_path / "all", examples, **how)
    expected = evaluate(tmp_path / "kept", kept, **how)
    assert (one.num_documents, one.num_left_out, other.num_left_out) == (2, 2, 0)
    assert one.models == other.models == expected.models
    assert "one: 2 examples are left out" in caplog.text and "'ab ba abb'" in caplog.text
    assert "other:" not in caplog.text
    assert "2, 1 of them cut to the context; 2 more left out" in report_markdown(one)
    write_results(tmp_path / "result.json", [one, other])
    assert read_results(tmp_path / "result.json") == [one, other]


def test_documents_without_language_or_cluster_count_overall_only(tmp_path):
    plain = [HeldOutDocument(document.text) for document in DOCUMENTS]
    known = evaluate(tmp_path, language_expert=None)
    result = evaluate(tmp_path, plain, language_expert=None, dense=None)
    assert result.headline.overall == known.headline.overall
    assert result.languages == result.clusters == []


@pytest.mark.parametrize("known", [{}, {"xx": 0}])
def test_without_an_expert_for_every_language_none_is_chosen_by_language(tmp_path, known):
    names = [model.name for model in evaluate(tmp_path, language_expert=known).models]
    assert names[4:] == ["ensemble", "ensemble top-1", "ensemble top-2"]
    with pytest.raises(ConfigError, match="top1_language"):
        evaluate(tmp_path, language_expert=known, rules=["top1_language"])


def test_the_number_of_experts_is_checked_before_any_model_is_loaded(tmp_path):
    with pytest.raises(ConfigError, match=r"clustering\.num_clusters=5"):
        evaluate(tmp_path, clusterer=LanguageClusterer(5))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name, top_k", [("ensemble, T=3", 3), ("ensemble top-2, T=3", 2)])
def test_every_temperature_is_mixed_from_the_same_scores(tmp_path, name, top_k):
    result = evaluate(tmp_path, temperatures=[3.0])
    expected = slow_perplexity(lambda document, prefix: slow_router(prefix, top_k, temperature=3.0))
    assert result.model(name).overall.perplexity == pytest.approx(expected, rel=1e-5)


def test_behind_the_routers_share_of_a_document_the_last_weights_hold(tmp_path):
    router = dataclasses.replace(ROUTER, cluster_ratio=0.5)

    def held(document, prefix):
        renewed = (len(encode(document.text)) - 1) // 2
        return slow_router(prefix[: max(renewed - 2, 0)], 3)

    result = evaluate(tmp_path, router=router)
    assert result.headline.overall.perplexity == pytest.approx(slow_perplexity(held), rel=1e-5)


def test_random_weights_are_those_of_a_document_whatever_stands_around_it(tmp_path):
    together = evaluate(tmp_path / "a", rules=["random"], top_k=[None])
    alone = evaluate(tmp_path / "b", DOCUMENTS[1:2], rules=["random"], top_k=[None])
    assert together.headline.by_cluster[1] != alone.headline.by_cluster[1]  # two documents and one
    backwards = evaluate(tmp_path / "c", DOCUMENTS[::-1], rules=["random"], top_k=[None])
    for cluster in range(3):
        ours, theirs = together.headline.by_cluster[cluster], backwards.headline.by_cluster[cluster]
        assert ours.nats == pytest.approx(theirs.nats)


def test_top_k_runs_only_the_experts_that_a_document_needs(tmp_path):
    models = [BigramModel(k) for k in range(3)]
    near_a = [HeldOutDocument(text) for text in ("aaaa", "aa", "aaa")]
    far = np.array([[0.9, 0.1], [0.1, 1.5], [-1.0, -1.0]], dtype=np.float32)
    arguments = {
        "clusterer": letter_clusterer(far),
        "dense": None,
        "rules": ["clustering"],
        "top_k": [1],
        "batch_tokens": 1,  # a document a forward pass
    }
    result = evaluate(tmp_path / "few", near_a, experts=sources(models), each_expert=False, **arguments)
    assert [model.calls for model in models] == [3, 0, 0]
    assert [model.name for model in result.models] == ["ensemble top-1"]
    everything = evaluate(tmp_path / "all", near_a, experts=sources(models), **arguments)
    assert [model.calls for model in models] == [6, 3, 3]
    assert everything.headline == result.headline


def test_an_expert_that_no_document_needs_is_not_even_loaded(tmp_path):
    def never():
        raise AssertionError("an expert without weight was loaded")

    first, second, third = sources()
    experts = [first, second, dataclasses.replace(third, load=never)]
    evaluate(tmp_path, experts=experts, rules=["top1_language"], each_expert=False)


def test_subsets_are_scored_together_and_reported_apart(tmp_path):
    loads = []
    experts = [
        dataclasses.replace(source, load=lambda source=source: loads.append(source.name) or source.load())
        for source in sources()
    ]
    halves = {"a": DOCUMENTS[:2], "b": DOCUMENTS[2:]}
    found = evaluate_subsets(tmp_path / "both", halves, experts=experts)
    assert loads == ["expert0", "expert1", "expert2"]
    for result, (name, documents) in zip(found, halves.items(), strict=True):
        alone = evaluate(tmp_path / name, documents)
        assert result.dataset == name
        assert [model.overall for model in result.models] == [model.overall for model in alone.models]


def test_only_documents_of_the_clusters_asked_for_count(tmp_path):
    result = evaluate(tmp_path, clusters=[1])
    assert result.num_documents == 2 and list(result.documents) == ["yy"]


def test_the_rest_of_the_experts_shares_the_weight_of_a_missing_one(tmp_path):
    first, _, third = sources()
    result = evaluate(tmp_path, experts=[first, None, third], language_expert={"xx": 0, "yy": 2})

    def without_second(document, prefix):
        a, _, c = slow_router(prefix, 3)
        return [a / (a + c), 0.0, c / (a + c)]

    assert result.headline.overall.perplexity == pytest.approx(slow_perplexity(without_second), rel=1e-5)
    by_language = slow_perplexity(lambda document, prefix: [1, 0, 0] if document.lang == "xx" else [0, 0, 1])
    assert result.model("top-1 by language").overall.perplexity == pytest.approx(by_language, rel=1e-5)
    assert result.missing_experts == ["expert1"]
    assert "Without expert1: not trained." in verdict(result)


@pytest.mark.parametrize("num_groups", [2, 3, 5])
def test_models_spread_over_ranks_give_the_same_result(tmp_path, num_groups):
    barrier = threading.Barrier(num_groups, timeout=60)
    models = [BigramModel(k) for k in range(3)]

    def rank(group):
        team = Team(group, num_groups, wait=barrier.wait)
        return evaluate_subsets(tmp_path / "spread", {"test": DOCUMENTS}, experts=sources(models), team=team)

    with ThreadPoolExecutor(num_groups) as ranks:
        (result,), *others = ranks.map(rank, range(num_groups))
    assert others == [[]] * (num_groups - 1)
    assert result == evaluate(tmp_path / "alone", experts=sources(MODELS))
    calls = [model.calls for model in models]
    evaluate(tmp_path / "again", experts=sources(models))
    assert [model.calls for model in models] == [2 * count for count in calls]  # each was run by one rank


@pytest.mark.parametrize("batch_tokens", [1, 17, 10_000])
def test_batches_do_not_change_a_result(tmp_path, batch_tokens):
    expected = evaluate(tmp_path / "a")
    result = evaluate(tmp_path / "b", batch_tokens=batch_tokens)
    for ours, theirs in zip(result.models, expected.models, strict=True):
        assert ours.overall.nats == pytest.approx(theirs.overall.nats, rel=1e-6)


def test_long_documents_are_routed_by_their_whole_text_and_scored_in_windows(tmp_path):
    expected = evaluate(tmp_path / "whole")  # a bigram model needs no more context than a window has
    result = evaluate(tmp_path / "windows", seq_length=3, stride=2)
    assert result.num_truncated == 0
    for ours, theirs in zip(result.models, expected.models, strict=True):
        assert ours.overall.nats == pytest.approx(theirs.overall.nats, rel=1e-6)
    assert evaluate(tmp_path / "cut", seq_length=3).num_truncated == 3
