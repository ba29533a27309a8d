"""Given continuations, scored in batches and pieces, against evaluation's own figures."""

import pytest
import torch

from tests.helpers.exported import ROUTER, TEXTS, evaluations_log_prob, export_two
from xelm_nemo.clustering.clusterer import Clusterer
from xelm_nemo.clustering.kmeans import squared_distances
from xelm_nemo.errors import ArtifactError, ConfigError
from xelm_nemo.generation import continuations
from xelm_nemo.generation.continuations import (
    continue_texts,
    score_averaged,
    score_continuations,
    score_sequences,
)
from xelm_nemo.generation.opened import open_model
from xelm_nemo.router.weights import router_log_weights


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return export_two(tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="module")
def opened(root):
    return open_model(root / "set")


def encoded(opened):
    return [[2, *opened.tokenizer(text, add_special_tokens=False)["input_ids"]] for text in TEXTS]


def scored(opened, pairs, batch_tokens=10_000):
    return [nats for nats, _ in score_continuations(opened, pairs, batch_tokens=batch_tokens)]


def test_continuations_get_what_evaluation_gives_these_tokens(root, opened):
    pairs = [
        (ids[:split], ids[split:]) for ids, split in zip(encoded(opened), (1, 2, 5, 9, 12, 3), strict=True)
    ]
    expected = [
        evaluations_log_prob(root, [*context, *continuation])[-len(continuation) :].sum().item()
        for context, continuation in pairs
    ]
    assert scored(opened, pairs) == pytest.approx(expected, abs=1e-4)
    assert scored(opened, pairs, batch_tokens=1) == pytest.approx(expected, abs=1e-4)


def test_long_continuations_go_through_in_pieces_with_the_same_outcome(opened, monkeypatch):
    pairs = [(ids[:3], ids[3:]) for ids in encoded(opened)]
    whole = scored(opened, pairs)
    monkeypatch.setattr(continuations, "_LOGITS_AT_ONCE", 1)
    assert scored(opened, pairs) == pytest.approx(whole, abs=1e-4)


def test_a_continuation_is_greedy_if_the_model_would_say_it(opened):
    context = encoded(opened)[0][:4]
    said = opened.model.generate(torch.tensor([context]), max_new_tokens=3, do_sample=False)[0, 4:].tolist()
    others = [*said[:-1], (said[-1] + 1) % 50]
    pairs = [(context, said), (context, others), (context, said[:1])]
    assert [greedy for _, greedy in score_continuations(opened, pairs, batch_tokens=100)] == [
        True,
        False,
        True,
    ]


def test_contexts_that_do_not_fit_lose_their_beginning(opened):
    long = [ids for text in encoded(opened) for ids in text][: opened.context + 20]
    cut = long[20:]
    assert len(cut) == opened.context
    assert scored(opened, [(long, [7])]) == pytest.approx(scored(opened, [(cut, [7])]), abs=1e-6)


def test_a_continuation_beyond_the_context_is_refused(opened):
    with pytest.raises(ConfigError, match="a continuation of 65 tokens does not fit the context of 64"):
        scored(opened, [([2], [5] * 65)])


def test_nothing_is_certain_to_follow(opened):
    (first, *_), pair = encoded(opened), ([2, 5], [6, 7])
    assert score_continuations(opened, [(first, []), pair], batch_tokens=100)[0] == (0.0, True)
    assert scored(opened, [(first, []), pair])[1] == pytest.approx(scored(opened, [pair])[0], abs=1e-6)


@pytest.mark.parametrize("score", [score_continuations, score_sequences, score_averaged])
def test_no_pairs_have_no_scores(opened, score):
    how = {} if score is score_continuations else {"top_k": 1}
    assert score(opened, [], batch_tokens=100, **how) == []


def test_a_single_model_opens_as_a_mixture_of_itself(root):
    from transformers import AutoModelForCausalLM

    opened = open_model(root / "expert0")
    ids = encoded(opened)[0]
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(root / "expert0")(torch.tensor([ids[:-1]])).logits[0]
    log_p = torch.log_softmax(logits.double(), -1).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]
    assert scored(opened, [(ids[:4], ids[4:])]) == pytest.approx([log_p[3:].sum().item()], abs=1e-5)


@pytest.mark.parametrize("top_k", [None, 1])
def test_sequences_are_mixed_once_by_the_weights_of_their_context(root, opened, top_k):
    pairs = [(ids[:5], ids[5:]) for ids in encoded(opened)[:3]]
    alone = [scored(open_model(root / name), pairs) for name in ("expert0", "expert1")]
    clusterer = Clusterer.load(root / "clusterer")
    expected = []
    for n, (context, _) in enumerate(pairs):
        text = opened.tokenizer.decode(context, skip_special_tokens=True)
        distance = squared_distances(clusterer.features.transform([text]), clusterer.centroids)
        log_w = router_log_weights(torch.from_numpy(distance), temperature=ROUTER.temperature)[0]
        mixed = [alone[e][n] + log_w[e].item() for e in range(2)]
        best = int(log_w.argmax())
        expected.append(mixed[best] if top_k else torch.tensor(mixed).logsumexp(0).item())
    before = scored(opened, pairs)
    assert score_sequences(opened, pairs, top_k=top_k, batch_tokens=100) == pytest.approx(expected, abs=1e-4)
    assert scored(opened, pairs) == pytest.approx(before, abs=1e-6)


@pytest.mark.parametrize("top_k", [None, 1])
def test_logits_are_averaged_by_the_weights_of_the_context(root, top_k):
    opened = open_model(root / "set", temperature=5.0)  # for weights that are far from 0 and 1
    rows = zip(encoded(opened)[1:], (1, 9, 6, 3, 7), strict=True)
    pairs = [(ids[:-count], ids[-count:]) for ids, count in rows]
    clusterer, expected = Clusterer.load(root / "clusterer"), []
    experts = [open_model(root / name).model.experts[0] for name in ("expert0", "expert1")]
    for context, continuation in pairs:
        text = opened.tokenizer.decode(context, skip_special_tokens=True)
        distance = squared_distances(clusterer.features.transform([text]), clusterer.centroids)
        weights = router_log_weights(torch.from_numpy(distance), temperature=5.0)[0].exp()
        assert 0.51 < weights.max() < 0.7
        if top_k:
            weights = torch.eye(2)[weights.argmax()]
        ids, nats = [*context, *continuation], 0.0
        with torch.no_grad():
            logits = [expert(torch.tensor([ids[:-1]])).logits[0].double() for expert in experts]
        for place, token in enumerate(continuation, len(context) - 1):
            mean = sum(w * z[place] for w, z in zip(weights.double(), logits, strict=True))
            nats += float(mean[token] - mean.exp().sum().log())
        expected.append(nats)
    before = scored(opened, pairs)
    for batch_tokens in (1, 100):
        found = score_averaged(opened, pairs, top_k=top_k, batch_tokens=batch_tokens)
        assert [nats for nats, _ in found] == pytest.approx(expected, abs=1e-4)
    assert scored(opened, pairs) == pytest.approx(before, abs=1e-6)
    assert before != pytest.approx(expected, abs=1e-2)


def test_texts_end_before_the_first_stop(opened):
    rows = [ids[:4] for ids in encoded(opened)]
    (free,) = continue_texts(opened, rows[:1], stops=[], max_new_tokens=12, do_sample=False)
    middle = free[len(free) // 2]
    together = continue_texts(opened, rows, stops=["\n\n", middle], max_new_tokens=12, do_sample=False)
    assert together[0] == free.split(middle)[0]
    assert all(middle not in text for text in together)


def test_a_folder_without_a_model_says_what_to_give(tmp_path):
    with pytest.raises(ArtifactError, match=r"no exported model .* such as runs/<name>/export/ensemble"):
        open_model(tmp_path)
