"""Many documents at once get the ids that each gets alone."""

import json
import random
import sys
import unicodedata

import numpy as np
import pytest
from tokenizers import ByteLevelBPETokenizer, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.helpers.fast_tokenizer import fast_xglm
from xelm_nemo.corpus import encode
from xelm_nemo.corpus.encode import DocumentEncoder, cuts_at_spaces
from xelm_nemo.corpus.tokenizer import encode_document, load_tokenizer
from xelm_nemo.corpus.udhr import documents

UNUSED = ("Cn", "Co", "Cs")  # code points without a meaning, and halves of surrogate pairs
TEXTS = [row["text"] for row in documents()]
TRICKY = [
    *("a b", "a  b", " a b ", "a\nb", "a\n\nb", "a \nb", "a\r\nb c", "a\tb", "\n", "  x  ", "it's 's 's"),
    *(
        "a </s> b",
        "a</s> b",
        "a </s>b",
        "<s><pad> <unk>",
        "<madeupword0> x",
        "a \uff1c/s\uff1e b",
        "▁a ▁ b▁ c",
    ),
    *("a\u0301 \u0301b", "a \u0308b", "x\u200f y", "x \u200fy", "x\u00a0 y", "x \u3000y", "x\u2003 y"),
    *(
        "\u0600 1",
        "\u0d4e x",
        "a\u200d b",
        "a\ufeff b",
        "か ﾞ",
        "\u2028 a",
        "a\u2028 b",
        "a\x85 b",
        "é e\u0301",
    ),
    *("ﹰ x", "x ﹰ", "¨ x ¨", "ﷺ x ﷺ", "1 234 5", "\x1c a \x1c b", "\U0001d4b3 x\u0332 y", "ﬁ ﬂ", "…  …"),
]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """XGLM's kind, slow and fast, and OPT's kind."""
    folder, opt = tmp_path_factory.mktemp("xglm"), tmp_path_factory.mktemp("opt")
    xglm = fast_xglm(TEXTS, 2048, folder)
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        TEXTS, vocab_size=2000, special_tokens=["<s>", "<pad>", "</s>"], show_progress=False
    )
    PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="</s>").save_pretrained(opt)
    return {"slow": load_tokenizer(folder / "slow"), "xglm": xglm, "opt": load_tokenizer(opt)}


def alone(tokenizer, texts):
    return [np.array(encode_document(tokenizer, text), dtype=np.int32).tobytes() for text in texts]


@pytest.mark.parametrize("kind", ["slow", "xglm", "opt"])
def test_real_and_tricky_texts_get_the_same_ids(tokenizers, kind):
    tokenizer, texts = tokenizers[kind], TEXTS + TRICKY
    encoder = DocumentEncoder(tokenizer, np.int32)
    expected = alone(tokenizer, texts)
    assert encoder.encode(texts) == expected
    assert encoder.encode(texts) == expected, "from memory"


@pytest.mark.parametrize("kind", ["xglm", "opt"])
@pytest.mark.parametrize("seed", range(5))
def test_random_texts_get_the_same_ids(tokenizers, kind, seed):
    noise = random.Random(seed)
    words = sorted({word for text in TEXTS for word in text.split()}) + "".join(TRICKY).split(" ")
    gaps = [" "] * 12 + ["\n", "  ", "\n\n", " \n", "\t", "", "\u00a0", "\u200b", "\u0301", "</s>"]
    texts = ["".join(noise.choice(words) + noise.choice(gaps) for _ in range(60)) for _ in range(200)]
    texts += ["".join(chr(noise.randrange(32, 0xD800)) for _ in range(50)) for _ in range(100)]
    encoder = DocumentEncoder(tokenizers[kind], np.int32)
    assert encoder.encode(texts) == alone(tokenizers[kind], texts)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["xglm", "opt"])
def test_every_letter_beside_a_space_gives_the_same_ids(tokenizers, kind):
    letters = [
        letter
        for letter in map(chr, range(1, sys.maxunicode + 1))
        if unicodedata.category(letter) not in UNUSED
    ]
    blocks = [letters[start : start + 64] for start in range(0, len(letters), 64)]
    texts = [" ".join(f"a{letter} {letter}b {letter}" for letter in block) for block in blocks]
    encoder = DocumentEncoder(tokenizers[kind], np.int32)
    assert encoder.encode(texts) == alone(tokenizers[kind], texts)


def test_words_are_remembered_in_bounded_room(tokenizers, monkeypatch):
    monkeypatch.setattr(encode, "_ROOM", 1000)
    encoder = DocumentEncoder(tokenizers["opt"], np.int32)
    for start in range(0, len(TEXTS), 10):
        some = TEXTS[start : start + 10]
        assert encoder.encode(some) == alone(tokenizers["opt"], some)
        assert len(encoder._ids_of) < 1000 + len(" ".join(some))
    assert encoder.encode([]) == []


def test_opts_tokenizer_cuts_at_spaces(tokenizers):
    assert cuts_at_spaces(json.loads(tokenizers["opt"].backend_tokenizer.to_str()))


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": normalizers.Lowercase()},  # a final sigma looks at what follows
        {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)},
        {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True)},  # to words after a newline too
        {"pre_tokenizer": pre_tokenizers.Metaspace()},
        {"pre_tokenizer": pre_tokenizers.Punctuation()},
    ],
)
def test_other_tokenizers_get_whole_documents(change):
    tokenizer = Tokenizer(models.BPE(vocab={"</s>": 0, "a": 1, "Ġ": 2}, merges=[], unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert cuts_at_spaces(json.loads(tokenizer.to_str()))
    [(name, part)] = change.items()
    setattr(tokenizer, name, part)
    assert not cuts_at_spaces(json.loads(tokenizer.to_str()))
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
    texts = ["a a b", "a\nb", ""]
    assert DocumentEncoder(wrapped, np.int32).encode(texts) == alone(wrapped, texts)


def test_special_token_that_takes_in_its_neighbours_keeps_documents_whole():
    tokenizer = Tokenizer(models.BPE(vocab={"</s>": 0}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    spec = json.loads(tokenizer.to_str())
    token = {"content": "<mask>", "rstrip": False, "single_word": False}
    assert cuts_at_spaces(spec | {"added_tokens": [token]})
    for change in ({"rstrip": True}, {"single_word": True}, {"content": "<a b>"}):
        assert not cuts_at_spaces(spec | {"added_tokens": [token | change]})
