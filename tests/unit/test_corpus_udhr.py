import json
import re
import unicodedata
from collections import Counter, defaultdict

import numpy as np

from xelm_nemo.corpus.documents import read_documents
from xelm_nemo.corpus.udhr import TEST_ARTICLES, VALID_ARTICLES, documents, write_corpus

LANGUAGES = {
    "ar",
    "bg",
    "de",
    "el",
    "en",
    "es",
    "fr",
    "hi",
    "ja",
    "ko",
    "ru",
    "sw",
    "th",
    "tr",
    "ur",
    "vi",
    "zh",
}


def rows_of(folder, split):
    lines = (folder / split / "00000" / "udhr.jsonl").read_bytes().splitlines()
    return [json.loads(line) for line in lines]


def heading_number(text):
    """The article number that the first line gives, in digits of any script; 1 for French "premier"."""
    heading = text.split("\n")[0]
    if re.fullmatch("第[一二三四五六七八九十]+条", heading):
        tens, ten, ones = heading[1:-1].rpartition("十")
        value = unicodedata.numeric(tens or "一") * unicodedata.numeric(ten) if ten else 0
        return value + (unicodedata.numeric(ones) if ones else 0)
    digits = re.search(r"\d+", heading)
    return int(digits.group()) if digits else 1


def test_every_language_has_every_article_once():
    found = defaultdict(Counter)
    for row in documents():
        found[row["lang"]][row["article"]] += 1
    assert set(found) == LANGUAGES
    for lang, articles in found.items():
        assert {a: n for a, n in articles.items() if a is not None} == dict.fromkeys(range(31), 1), lang


def test_articles_carry_the_number_of_their_own_heading():
    for row in documents():
        if row["article"]:
            assert heading_number(row["text"]) == row["article"], row["id"]


def test_the_preamble_is_the_longest_text_but_no_title_is_long():
    for row in documents():
        if row["article"] is None:
            assert "\n" not in row["text"] and len(row["text"]) < 100, row["id"]
    for lang in LANGUAGES:
        longest = max((row for row in documents() if row["lang"] == lang), key=lambda row: len(row["text"]))
        assert longest["article"] == 0, lang


def test_lengths_of_translations_go_together():
    """An article that is off by one would lose the correlation with English."""
    length = defaultdict(dict)
    for row in documents():
        if row["article"] is not None:
            length[row["lang"]][row["article"]] = np.log(len(row["text"]))
    english = [length["en"][a] for a in range(31)]
    for lang, of in length.items():
        assert np.corrcoef(english, [of[a] for a in range(31)])[0, 1] > 0.93, lang


def test_no_translation_of_a_held_out_article_is_in_train(tmp_path):
    write_corpus(tmp_path)
    articles = {
        split: {row["article"] for row in rows_of(tmp_path, split)} for split in ("train", "valid", "test")
    }
    assert articles["test"] == set(TEST_ARTICLES)
    assert articles["valid"] == set(VALID_ARTICLES)
    assert articles["train"].isdisjoint(articles["test"] | articles["valid"])
    assert articles["train"] | articles["valid"] | articles["test"] == {None, *range(31)}


def test_the_splits_are_readable_and_keep_every_field(tmp_path):
    counts = write_corpus(tmp_path)
    assert counts == {"train": 386, "valid": 4 * 17, "test": 5 * 17}
    for split, count in counts.items():
        read = list(read_documents(tmp_path, split))
        assert len(read) == count
        assert {document.lang for document in read} == LANGUAGES
        assert set(rows_of(tmp_path, split)[0]) == {"text", "id", "lang", "source", "license", "article"}


def test_writing_again_gives_the_same_bytes(tmp_path):
    write_corpus(tmp_path / "a")
    write_corpus(tmp_path / "b")
    for split in ("train", "valid", "test"):
        assert rows_of(tmp_path / "a", split) == rows_of(tmp_path / "b", split)
