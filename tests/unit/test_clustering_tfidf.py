import json
import random
import re
import tracemalloc
from importlib.resources import files

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from tests.helpers.full_disk import room_for_files_of
from tests.helpers.scikit_learn import assert_same_rows, definition
from xelm_nemo.clustering import tfidf
from xelm_nemo.clustering.tfidf import TfidfVectorizer
from xelm_nemo.errors import ArtifactError, ConfigError

TRICKY = [
    "",
    " \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2000\u2028\u2029\u3000",
    "ΟΔΥΣΣΕΥΣ ΣΑΣ ΑΣ. Σ ΣΣ ΑΣΒ ΑΣ.Β 'ΑΣ' ΑΣ\u0301 ΑΣ\u0301Β A\u00adΣ Α\u0345Σ 1Σ Σ1 ΑΣ1",
    "İstanbul İİ Iİ DİYARBAKIR ıI iİΣ İΣ",
    "Straße STRASSE ẞẞ ßß GROẞE ſſ",
    "e\u0301te\u0301 été a\u0308\u0308a नमस्ते किताब सभी मनुष्यों",
    "𐐀𐐁𐐨 𝒜𝒷𝒸 𠀀𠀁 😀😀 a😀b 🄰🄱 \U0001e900\U0001e922",
    "zero\u200bwidth zero\u200djoin zero\ufeffmark soft\u00adhyphen",
    "人人有权享有生命、自由和人身安全。 すべて人は、ｶﾀｶﾅ 모든 사람",
    "อิสรภาพและความเสมอภาค ทุกคน",
    "٣٤٥ ٣ا ا٣ ۱۲ ²³ ²a a² ½½ ½a ⅷⅷ Ⅷa ①② 𝟗a 一二 12ab ab12 3rd _1 1_ __",
    "nul\0nul \0\0 a\0b",
    "lone \ud800 aa\udfffbb \ud83d\udc00",
    "x" * 100_000 + " " + "Яя" * 5_000 + " " + "ab\u0301" * 3_000,
    "ﬀﬀ ǅǅ Ǆa ʰʰ ͅͅ ᾼᾼ ΑΙ Ⓐⓐ",
    "K K Å Ω kk KK ÅÅ ΩΩ",
    "the cat the dog 12 the 2nd cat",
]
SETTINGS = [
    {},
    {"tokenizer": "sklearn"},
    {"ngram_range": (1, 3)},
    {"ngram_range": (2, 3), "stop_words": ["the", "cat", "été", "σας"]},
    {"stop_words": ["the", "οδυσσευς", "zero"], "max_features": 20},
    {"stop_words": "english"},
    {"analyzer": "char_wb"},
    {"analyzer": "char_wb", "ngram_range": (1, 3)},
    {"analyzer": "char_wb", "ngram_range": (3, 5), "max_features": 300},
]


def assert_same_as_definition(texts, unseen=(), num_threads=2, **settings):
    ours, theirs = TfidfVectorizer(num_threads=num_threads, **settings), definition(**settings)
    rows, expected = ours.fit_transform(texts), theirs.fit_transform(texts)
    assert ours.terms_ == theirs.get_feature_names_out().tolist()
    assert ours.vocabulary_ == theirs.vocabulary_
    assert np.array_equal(ours.idf_, theirs.idf_)
    assert_same_rows(rows, expected)
    both = [*texts, *unseen]
    assert_same_rows(ours.transform(both), theirs.transform(both))
    assert_same_rows(
        TfidfVectorizer.restored(ours.terms_, ours.idf_, **settings).transform(both), theirs.transform(both)
    )


def shipped_texts():
    lines = (files("xelm_nemo") / "data" / "udhr" / "udhr.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_tricky_texts_give_scikit_learns_bits(settings):
    assert_same_as_definition(TRICKY, ["unseen the σας ΣΑΣ 人人有权享有生命", ""], **settings)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_real_text_in_17_languages_gives_scikit_learns_bits(settings):
    texts = shipped_texts()
    assert_same_as_definition(texts[::2], texts[1::2], **settings)


OTHER_SCRIPTS = {  # of which the package has no text: the first article of the declaration of human rights
    "bn": "সমস্ত মানুষ স্বাধীনভাবে সমান মর্যাদা এবং অধিকার নিয়ে জন্মগ্রহণ করে। তাঁদের বিবেক এবং বুদ্ধি আছে।",
    "ta": "மனிதப் பிறிவியினர் சகலரும் சுதந்திரமாகவே பிறக்கின்றனர்; அவர்கள் மதிப்பிலும், உரிமைகளிலும் சமமானவர்கள்.",
    "te": "ప్రతిపత్తిస్వత్వముల విషయమున మానవులెల్లరును జన్మతః స్వతంత్రులును సమానులును నగుదురు.",
    "my": "လူတိုင်းသည် တူညီ လွတ်လပ်သော ဂုဏ်သိက္ခာဖြင့် လည်းကောင်း၊ အခွင့်အရေးများဖြင့် လည်းကောင်း၊ မွေးဖွားလာသူများ ဖြစ်သည်။",
    "he": "כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם. כולם חוננו בתבונה ובמצפון.",
    "ka": "ყველა ადამიანი იბადება თავისუფალი და თანასწორი თავისი ღირსებითა და უფლებებით. ᲧᲕᲔᲚᲐ",
    "hy": "Բոլոր մարդիկ ծնվում են ազատ և հավասար՝ իրենց արժանապատվությամբ ու իրավունքներով։ ԵՒ եւ",
    "am": "የሰው ልጅ ሁሉ ሲወለድ ነጻና በክብርና በመብትም እኩልነት ያለው ነው።",
    "km": "មនុស្សទាំងអស់កើតមកមានសេរីភាព និងសមភាពក្នុងសេចក្ដីថ្លៃថ្នូរ និងសិទ្ធិ។",
    "pa": "ਸਾਰਾ ਮਨੁੱਖੀ ਪਰਿਵਾਰ ਆਪਣੀ ਮਹਿਮਾ, ਸ਼ਾਨ ਅਤੇ ਹੱਕਾਂ ਦੇ ਪੱਖੋਂ ਜਨਮ ਤੋਂ ਹੀ ਆਜ਼ਾਦ ਹੈ।",
}


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_real_text_in_other_scripts_gives_scikit_learns_bits(settings):
    texts = [*OTHER_SCRIPTS.values(), *(" ".join(text.split()[::-1]) for text in OTHER_SCRIPTS.values())]
    assert_same_as_definition(texts, [text.upper() for text in texts], **settings)


# Characters that are special somewhere, and the ranges that the others are drawn from.
SPECIAL = (
    "ΣσςİıiIßẞAbЯ.':^·\u00ad\u0301\u0307\u0345\u200d\u0640ʰⓐǅ12²½٣Ⅷ①一人あ"
    " \u0e2d\0\x1c\x85\u3000_-\ud800\U00010400"
)
RANGES = [(0, 0x7F), (0, 0xFF), (0, 0x2FFF), (0, 0xFFFF), (0x10000, 0x1FFFF), (0, 0x10FFFF)]


def random_texts(rng):
    (low, high), special_share = rng.choice(RANGES), rng.choice([0, 0.05, 0.6])
    longest = rng.choice([60, 300])

    def character():
        return rng.choice(SPECIAL) if rng.random() < special_share else chr(rng.randint(low, high))

    return ["".join(character() for _ in range(rng.randrange(longest))) for _ in range(rng.randrange(1, 12))]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_random_unicode_gives_scikit_learns_bits(settings):
    rng = random.Random(str(settings))
    for _ in range(60):
        texts = [*random_texts(rng), "so that there are two terms"]
        assert_same_as_definition(texts, random_texts(rng), num_threads=rng.randint(1, 3), **settings)


@pytest.mark.parametrize("pattern", ["{0}{0}", "aa{0}bb", "AA{0}Σ", "AAΣ{0}BB", "AAΣ{0}"])
def test_every_code_point_is_what_it_is_to_python(pattern):
    text = " ".join(pattern.format(chr(code)) for code in range(0x110000))
    expected = sorted(set(definition(tokenizer="sklearn").build_analyzer()(text)))
    assert TfidfVectorizer(tokenizer="sklearn").fit([text]).terms_ == expected


def test_every_code_point_but_white_space_is_in_a_word_of_characters():
    text = " ".join(f"a{chr(code)}B" for code in range(0x110000))
    expected = sorted({" ", *"".join(text.lower().split())})
    assert TfidfVectorizer(analyzer="char_wb").fit([text]).terms_ == expected


@pytest.mark.parametrize("max_features", [2, 3, 17, 100, 1999, 2000, 2001])
def test_of_equally_frequent_terms_scikit_learns_are_kept(max_features):
    rng = random.Random(max_features)
    words = [f"w{number:04}" for number in range(2000)]
    texts = [" ".join(rng.sample(words, 400)) for _ in range(8)] + [" ".join(words)]
    assert_same_as_definition(texts, max_features=max_features)


def test_of_too_many_terms_to_sort_the_first_of_equally_frequent_ones_are_kept(monkeypatch):
    monkeypatch.setattr(tfidf, "_MOST_TERMS_TO_SORT", 3)
    texts = ["dd cc bb aa ee", "bb dd ff"]
    assert TfidfVectorizer(max_features=4).fit(texts).terms_ == ["aa", "bb", "cc", "dd"]
    assert TfidfVectorizer(max_features=2).fit(texts).terms_ == ["bb", "dd"]
    assert TfidfVectorizer(max_features=6).fit(texts).terms_ == ["aa", "bb", "cc", "dd", "ee", "ff"]


@pytest.mark.parametrize("settings", [{}, {"analyzer": "char_wb", "ngram_range": (1, 3)}], ids=str)
def test_neither_threads_nor_full_tables_nor_batches_change_a_bit(settings, monkeypatch):
    texts = shipped_texts()
    expected = TfidfVectorizer(num_threads=1, **settings)
    rows = expected.fit_transform(texts)
    monkeypatch.setattr(tfidf, "_CHARACTERS_A_BATCH", 3000)
    for num_threads in (1, 2, 5):
        small = TfidfVectorizer(num_threads=num_threads, memory_bytes=1, **settings).fit(iter(texts))
        assert small.terms_ == expected.terms_
        assert np.array_equal(small.idf_, expected.idf_)
        assert_same_rows(small.transform(iter(texts)), expected.transform(texts))
        assert_same_rows(small._matrix(small.parts(iter(texts), by_first_use=True)), rows)


def test_fitting_keeps_no_text(monkeypatch):
    monkeypatch.setattr(tfidf, "_CHARACTERS_A_BATCH", 100_000)
    tracemalloc.start()
    TfidfVectorizer().fit("the same words again " * 500 for _ in range(2000))  # 21 MB
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_no_room_for_full_tables_is_one_line_that_names_the_folder():
    texts = [f"{' '.join(f'word{number}x' for number in range(3000))}"]
    with room_for_files_of(1000), pytest.raises(ArtifactError) as caught:
        TfidfVectorizer(memory_bytes=1).fit(texts)
    assert re.fullmatch(
        r"\S+/xelm_terms_\w+ cannot be written \(File too large\); set TMPDIR to a folder with more room\.",
        str(caught.value),
    )


def test_fitting_again_forgets_what_was_fitted_before():
    vectorizer = TfidfVectorizer().fit(["one two"])
    vectorizer.transform(["one"])
    vectorizer.fit(["two three"])
    assert vectorizer.vocabulary_ == {"three": 0, "two": 1}
    assert vectorizer.transform(["one two"]).toarray().tolist() == [[0, 1]]


def test_words_that_start_with_a_digit_are_left_out_without_any_stop_words():
    text = "ab12 12ab 2019 3rd x ٣٤ two_2 third"
    assert TfidfVectorizer().fit([text]).terms_ == ["ab12", "third", "two_2"]
    assert "12ab" in TfidfVectorizer(tokenizer="sklearn").fit([text]).terms_


def test_no_text_has_no_row():
    rows = TfidfVectorizer().fit(["one two"]).transform([])
    assert isinstance(rows, csr_matrix)
    assert rows.shape == (0, 2)


def test_texts_without_a_term_are_an_error_that_says_what_to_try():
    with pytest.raises(ConfigError, match=r"finds 0 terms in 2 documents.*char_wb"):
        TfidfVectorizer().fit(["1948", "a b c"])


def test_what_is_no_text_is_named_by_its_place():
    vectorizer = TfidfVectorizer().fit(["one two"])
    for call in (vectorizer.fit, vectorizer.transform):
        with pytest.raises(TypeError, match=r"texts\[1\] is a bytes, not a str"):
            call(["one", b"two"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"analyzer": "char"}, r"analyzer='char'.*'char_wb'"),
        ({"tokenizer": "spacy"}, r"tokenizer='spacy'.*'upstream'"),
        ({"ngram_range": (2, 1)}, r"ngram_range=\[2, 1\]"),
        ({"max_features": 1}, r"max_features=1"),
        ({"stop_words": "german"}, r"stop_words='german' is one string; give a list of words, or 'english'"),
    ],
)
def test_a_setting_that_cannot_work_is_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        TfidfVectorizer(**settings)
