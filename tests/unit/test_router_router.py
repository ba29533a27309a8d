"""The router in O(T) against its definition, which decodes and vectorises every prefix anew."""

import random
import threading

import numpy as np
import pytest
import torch

from tests.helpers.bigrams import EOS, LanguageClusterer, LetterTokenizer, encode, letter_clusterer
from tests.helpers.fast_tokenizer import fast_xglm
from tests.helpers.prefix_definition import prefix_squared_distances
from tests.helpers.random_opt import write_opt_tokenizer, write_published_opt_tokenizer
from tests.unit.test_clustering_tfidf import OTHER_SCRIPTS, TRICKY, random_texts
from xelm_nemo.clustering.clusterer import TfidfClusterer
from xelm_nemo.clustering.features import FeatureSettings, TextFeatures
from xelm_nemo.clustering.tfidf import TfidfVectorizer
from xelm_nemo.corpus.tokenizer import encode_document, load_tokenizer
from xelm_nemo.corpus.udhr import documents
from xelm_nemo.errors import ArtifactError, ConfigError
from xelm_nemo.router import Router
from xelm_nemo.router.pieces import pieces_of
from xelm_nemo.router.weights import router_weights

TEXTS = [row["text"] for row in documents()]
SETTINGS = {
    "word": FeatureSettings("word", (1, 1), None),
    "few_words": FeatureSettings("word", (1, 1), 500, ("the", "und", "και")),
    "word_ngrams": FeatureSettings("word", (1, 3), None, ("the", "and", "of", "και", "σας", "της")),
    "longer_word_ngrams": FeatureSettings("word", (2, 3), 5000),
    "char_wb": FeatureSettings("char_wb", (1, 3), None),
    "long_char_wb": FeatureSettings("char_wb", (3, 5), 20_000),
    "very_long_char_wb": FeatureSettings("char_wb", (7, 9), 20_000),
}
TOKENIZERS = ["opt", "published_opt", "xglm", "slow_xglm"]
LONGEST = {"opt": 300, "published_opt": 80, "xglm": 300, "slow_xglm": 80}  # tokens: two decode in Python
# What is appended changes what was there, or hardly anything is left of it.
CASES = {
    "final_sigma": "ΟΔΥΣΣΕΥΣ ΣΑΣ ΑΣ. Σ ΣΣ ΑΣΒ ΑΣ.Β 'ΑΣ' ΑΣ\u0301 ΑΣ\u0301Β A\u00adΣ",
    "ignorable_behind_a_sigma": "ΑΣ.ʰΒ.ʰ ΑΣʰʰ.ʰ ΑΣ……Β Α.Σ.Α.Σ ΑΣ:::::::::::::::::::::Β ΑΣ.......",
    "sigma_before_an_astral_character": "ΑΣ😀Β ΑΣ\U0001f3fd ΑΣ\U00010400 ΑΣ\U000e0100Β",
    "dotted_i": "İstanbul DİYARBAKIR İİΣ",
    "astral": "𐐀𐐁𐐨 𝒜𝒷𝒸 𠀀𠀁 😀😀 a😀b ab😀",
    "marks": "e\u0301te\u0301 नमस्ते सभी มนุษย์ทั้งปวง a\u0308\u0308a",
    "numbers": "12ab ab12 3rd 2nd _1 1_ ²a ٣ا ½ half",
    "white_space": "  two  spaces\n\nlines\t\tand\u3000wide\xa0ones  ",
    "replacement_characters": "a\ufffdb \ufffd\ufffd ab\ufffd ΑΣ\ufffd ΑΣ\ufffdΒ \ufffd",
    "unknown_script": "ᚠᚢᚦᚨᚱᚲ ᚷᚹᚺᚾᛁ ꙮ",
    "empty": "",
    "one_letter": "a",
    "long_word": "Menschen" + "rechte" * 400 + " und Würde",
    "unspaced": "人人生而自由在尊严和权利上一律平等" * 30,
    "meta": "▁under ▁ ▁▁ a▁b",
}


def clusterer(settings, num_clusters=5, dims=40):
    """A clusterer with made-up components, of a real vocabulary: terms of a text cancel out now and then."""
    vectorizer = TfidfVectorizer(**vars(settings)).fit([*TEXTS, *OTHER_SCRIPTS.values(), *CASES.values()])
    draw = np.random.default_rng(7)
    components = draw.normal(size=(dims, len(vectorizer.terms_)))
    features = TextFeatures(settings, vectorizer.terms_, vectorizer.idf_, components)
    centroids = draw.normal(size=(num_clusters, dims)).astype(np.float32) / dims**0.5
    return TfidfClusterer(num_clusters, features, centroids)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    texts = [*TEXTS, *CASES.values()]
    return {
        "opt": load_tokenizer(write_opt_tokenizer(texts, root / "opt", 1500)),
        "published_opt": load_tokenizer(write_published_opt_tokenizer(texts, root / "published")),
        "xglm": fast_xglm(texts, 1500, root),
        "slow_xglm": load_tokenizer(root / "slow"),
    }


@pytest.fixture(scope="module")
def clusterers():
    return {name: clusterer(settings) for name, settings in SETTINGS.items()}


def assert_as_defined(model, tokenizer, ids):
    (found,) = Router(model).prefix_squared_distances([ids], tokenizer)
    expected = prefix_squared_distances(ids, tokenizer, model)
    assert found.shape == expected.shape and found.isfinite().all()
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
    for rule in ("upstream", "paper"):
        weights = [router_weights(d, temperature=0.1, rule=rule) for d in (found, expected)]
        torch.testing.assert_close(*weights, atol=1e-6, rtol=0)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_every_case_is_as_defined(settings, tokenizer, clusterers, tokenizers):
    for text in [*CASES.values(), *(text[:200] for text in TRICKY if "\ud800" not in text)]:
        ids = encode_document(tokenizers[tokenizer], text)[: LONGEST[tokenizer]]
        assert_as_defined(clusterers[settings], tokenizers[tokenizer], ids)


@pytest.mark.parametrize("settings", ["word", "word_ngrams", "char_wb"])
@pytest.mark.parametrize("tokenizer", ["opt", "xglm"])
def test_real_text_in_every_language_is_as_defined(settings, tokenizer, clusterers, tokenizers):
    of_language = {row["lang"]: row["text"] for row in documents() if len(row["text"]) < 2000}
    for text in [*of_language.values(), *OTHER_SCRIPTS.values()]:
        for form in (text, text.upper()):
            ids = encode_document(tokenizers[tokenizer], form)[:300]
            assert_as_defined(clusterers[settings], tokenizers[tokenizer], ids)


@pytest.mark.parametrize("settings", SETTINGS)
def test_random_unicode_is_as_defined(settings, clusterers, tokenizers):
    draw = random.Random(settings)
    for _ in range(12):
        name = draw.choice(TOKENIZERS)
        for text in random_texts(draw):
            text = text.encode("utf-8", "replace").decode()  # tokenizers take no half surrogate pair
            ids = encode_document(tokenizers[name], text)[: LONGEST[name]]
            assert_as_defined(clusterers[settings], tokenizers[name], ids)


@pytest.mark.parametrize("settings", ["word", "word_ngrams", "char_wb"])
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_random_tokens_are_as_defined(settings, tokenizer, clusterers, tokenizers):
    """They break off characters, and begin with special tokens and with pieces of any kind."""
    draw = random.Random(settings)
    known = np.flatnonzero(pieces_of(tokenizers[tokenizer]).is_known).tolist()
    for _ in range(10):
        some = draw.sample(known, min(len(known), draw.choice([5, 100])))
        ids = [draw.choice(some) for _ in range(LONGEST[tokenizer] // 2)]
        assert_as_defined(clusterers[settings], tokenizers[tokenizer], ids)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_prefixes_are_decoded_token_by_token(tokenizer, tokenizers):
    pieces = pieces_of(tokenizers[tokenizer])
    for text in [*CASES.values(), *TEXTS[::60]]:
        ids = [
            i
            for i in encode_document(tokenizers[tokenizer], text)[: LONGEST[tokenizer]]
            if pieces.is_known[i]
        ]
        expected = [
            tokenizers[tokenizer].decode(
                ids[: j + 1], skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
            for j in range(len(ids))
        ]
        assert pieces.in_cpp.texts(np.array(ids, np.int32)) == expected


def test_a_long_document_is_as_exact_as_a_short_one(clusterers, tokenizers):
    text = " ".join(TEXTS)
    ids = encode_document(tokenizers["xglm"], text)[:20_000]
    (whole,) = Router(clusterers["word"]).prefix_squared_distances([ids], tokenizers["xglm"])
    last = prefix_squared_distances(ids, _Last(tokenizers["xglm"]), clusterers["word"])[-1]
    torch.testing.assert_close(whole[-1], last, atol=1e-9, rtol=0)


class _Last:
    """A tokenizer that decodes the longest prefix only; decoding all of them takes minutes."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def decode(self, ids, **how):
        return self.tokenizer.decode(ids, **how) if len(ids) == 19_999 else ""


@pytest.mark.parametrize("settings", ["word", "char_wb"])
def test_a_stream_gives_what_the_whole_document_gives(settings, clusterers, tokenizers):
    router = Router(clusterers[settings])
    for name, tokenizer in tokenizers.items():
        ids = encode_document(tokenizer, CASES["final_sigma"] + CASES["astral"])
        (whole,) = router.prefix_squared_distances([ids], tokenizer)
        stream = router.stream(tokenizer)
        by_token = torch.cat([stream.append([token]) for token in ids[:-1]])
        assert torch.equal(torch.cat([router.empty_1K, by_token]), whole), name


def test_documents_do_not_depend_on_their_neighbours_or_threads(clusterers, tokenizers):
    tokenizer, model = tokenizers["opt"], clusterers["word"]
    ids = [encode_document(tokenizer, text) for text in TEXTS[::40]] + [[], [2]]
    router = Router(model)
    alone = [next(router.prefix_squared_distances([each], tokenizer)) for each in ids]
    for num_threads in (1, 3):
        model.features.use_threads(num_threads)
        together = router.prefix_squared_distances(ids, tokenizer)
        assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert [len(each) for each in alone] == [len(each) for each in ids]


def test_other_python_threads_run_meanwhile(clusterers, tokenizers):
    tokenizer = tokenizers["xglm"]
    ids = encode_document(tokenizer, " ".join(TEXTS[:200])) * 20
    count, over = [], threading.Event()

    def tick():
        while not over.wait(0.001):
            count.append(1)

    thread = threading.Thread(target=tick)
    thread.start()
    before = len(count)
    list(Router(clusterers["word"]).prefix_squared_distances([ids], tokenizer))
    during = len(count) - before
    over.set()
    thread.join()
    assert during >= 5


CENTROIDS = [[1, 0], [0, 2], [0.6, 0.8]]


def test_row_j_is_the_distance_of_the_text_before_token_j():
    router = Router(letter_clusterer(CENTROIDS))
    (distance,) = router.prefix_squared_distances([encode("ab")], LetterTokenizer())
    half = 0.5**0.5
    prefixes = [(0, 0), (0, 0), (1, 0), (half, half)]  # "", "</s>", "</s>a", "</s>ab"; "</s>ab</s>" is no row
    expected = [[((np.array(p) - c) ** 2).sum() for c in CENTROIDS] for p in prefixes]
    np.testing.assert_allclose(distance.numpy(), expected, atol=1e-6)


def test_weights_of_a_text_without_a_term_come_from_the_lengths_of_the_centroids():
    router = Router(letter_clusterer(CENTROIDS))
    weights = router.prefix_weights([EOS, 3, 3], LetterTokenizer(), 0.5)
    expected = torch.softmax(-(torch.tensor([1.0, 4.0, 1.0]) ** 2) / 0.5, -1)
    torch.testing.assert_close(weights, expected.expand(3, 3))


def test_weights_are_those_of_the_rule_at_the_distances(clusterers, tokenizers):
    router, tokenizer = Router(clusterers["word"]), tokenizers["xglm"]
    ids = encode_document(tokenizer, TEXTS[1])
    (distance,) = router.prefix_squared_distances([ids], tokenizer)
    how = {"temperature": 0.3, "rule": "paper", "top_k": 2}
    weights = router.prefix_weights(ids, tokenizer, **how)
    assert torch.equal(weights, router_weights(distance, **how)) and weights.dtype == torch.float32
    assert ((weights > 0).sum(1) <= 2).all()


def test_vectors_that_rounding_made_are_left_as_short_as_they_are(tokenizers):
    """As scikit-learn: of a term that the SVD does not see, only noise is left."""
    settings = SETTINGS["word"]
    components = np.array([[1e-17, 1.0, -1.0], [1e-18, 0.0, 1e-17]])
    terms = ["noise", "one", "two"]
    features = TextFeatures(settings, terms, np.ones(3), components)
    model = TfidfClusterer(2, features, np.array([[1, 0], [0, 1]], np.float32))
    for text in ("noise noise", "noise one", "one two", "one two noise", "one two two one"):
        assert_as_defined(model, tokenizers["xglm"], encode_document(tokenizers["xglm"], text))


def test_tokens_that_a_tokenizer_treats_in_its_own_way_are_decoded_by_it(clusterers, tokenizers):
    tokenizer = tokenizers["published_opt"]
    assert not pieces_of(tokenizer).is_known[3]  # <unk>, which it writes out with spaces around it
    ids = encode_document(tokenizer, "human rights")
    assert_as_defined(clusterers["word"], tokenizer, [*ids[:8], 3, *ids[8:]])
    router, mixed = Router(clusterers["word"]), [*ids[:8], 3, *ids[8:]]
    stream = router.stream(tokenizer)
    by_token = torch.cat([stream.append([token]) for token in mixed[:-1]])
    (whole,) = router.prefix_squared_distances([mixed], tokenizer)
    torch.testing.assert_close(torch.cat([router.empty_1K, by_token]), whole)


class Rewriter:
    """A tokenizer of no known kind, which rewrites what stands before."""

    def decode(self, ids, *, skip_special_tokens, clean_up_tokenization_spaces):
        return " ".join(("human", "rights", "freedom")[(i + len(ids)) % 3] for i in ids)


def test_a_tokenizer_that_rewrites_its_text_is_read_anew(clusterers):
    assert pieces_of(Rewriter()) is None
    assert_as_defined(clusterers["word_ngrams"], Rewriter(), [0, 1, 2, 1, 1, 0])


def test_a_tokenizer_that_decodes_otherwise_than_its_class_is_not_trusted(
    tokenizers, clusterers, monkeypatch
):
    tokenizer = load_tokenizer(tokenizers["xglm"].name_or_path)
    decode = tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda ids, **how: decode(ids, **how).swapcase())
    assert pieces_of(tokenizer) is None
    assert_as_defined(clusterers["char_wb"], tokenizer, encode_document(tokenizer, "Human Rights"))


def test_a_router_is_loaded_from_a_clusterers_folder(clusterers, tmp_path):
    model = clusterers["char_wb"]
    model.save(tmp_path)
    router = Router.load(tmp_path)
    assert np.array_equal(router.centroids, model.centroids)
    assert np.array_equal(router.embed(TEXTS[:3]), model.features.transform(TEXTS[:3]))
    with pytest.raises(ArtifactError, match="nowhere"):
        Router.load(tmp_path / "nowhere")


def test_a_clusterer_without_text_features_is_refused_with_the_rules_that_need_them():
    with pytest.raises(ConfigError, match=r"clustering\.method=tfidf.*'bayes'"):
        Router(LanguageClusterer(2))
