"""The unigram encoder gives the ids of Hugging Face's tokenizer, or none."""

import random
import string
import sys
import unicodedata

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from tests.helpers.fast_tokenizer import fast_xglm
from xelm_nemo.corpus.udhr import documents
from xelm_nemo.corpus.unigram import META, unigram_encoder

TEXTS = [row["text"] for row in documents()]
JOINED = normalizers.Replace(Regex(" {2,}"), META)
UNUSED = ("Cn", "Co", "Cs")  # code points without a meaning, and halves of surrogate pairs


@pytest.fixture(scope="module")
def xglm(tmp_path_factory):
    """XGLM's kind, trained on all languages."""
    return fast_xglm(TEXTS, 4096, tmp_path_factory.mktemp("xglm")).backend_tokenizer


def small(vocab=(("<unk>", 0.0), ("a", -1.0)), **parts):
    """A model of a few pieces behind other parts; the first piece is the unknown one."""
    tokenizer = Tokenizer(models.Unigram(list(vocab), unk_id=0, byte_fallback=False))
    tokenizer.normalizer = parts.get("normalizer", normalizers.Sequence([JOINED]))
    tokenizer.pre_tokenizer = parts.get("pre_tokenizer", pre_tokenizers.Metaspace())
    return tokenizer


def left_out(tokenizer, texts):
    """The texts that the encoder leaves to the tokenizer, those it takes being right."""
    found = unigram_encoder(tokenizer).encode(texts, 4)
    expected = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    for text, ids, right in zip(texts, found, expected, strict=True):
        assert ids in (None, np.array(right.ids, dtype=np.int32).tobytes()), ascii(text)
    return [text for text, ids in zip(texts, found, strict=True) if ids is None]


def test_real_texts_are_encoded_here(xglm):
    assert not left_out(xglm, TEXTS)
    assert not left_out(xglm, [text.replace("\n", "\r\n") for text in TEXTS])
    assert not left_out(xglm, [unicodedata.normalize("NFKC", text) for text in TEXTS])
    assert not left_out(xglm, [unicodedata.normalize("NFD", text) for text in TEXTS])


@pytest.mark.parametrize(
    "text", ["", " ", "\n", "a", "a ", "  a", "a  b", "▁", "a▁", "▁ ▁a", "a\t\u3000 b", "\ufeff"]
)
@pytest.mark.parametrize("replacement", [" ", META])
@pytest.mark.parametrize("strip", [None, (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("splits", [False, True])
def test_every_known_set_of_parts_gives_the_same_ids(text, replacement, strip, splits):
    steps = [normalizers.Replace(Regex(" {2,}"), replacement)] + (
        [normalizers.Strip(*strip)] if strip else []
    )
    cutters = [pre_tokenizers.WhitespaceSplit()] * splits + [pre_tokenizers.Metaspace()]
    vocab = [("<unk>", 0.0), ("▁", -2.0), ("▁a", -2.5), ("a", -1.0), ("b", -3.0)]
    for order in (steps, steps[::-1]):
        parts = {
            "normalizer": normalizers.Sequence(order),
            "pre_tokenizer": pre_tokenizers.Sequence(cutters) if splits else cutters[0],
        }
        assert not left_out(small(vocab, **parts), [text])


@pytest.mark.parametrize("seed", range(20))
def test_ties_and_unknown_characters_give_the_same_ids(seed):
    noise = random.Random(seed)
    letters = "ab▁é字𝒳"
    scores = [[-1.0, -2.0, -3.0], [0.1 * n for n in range(-9, 1)], [20.0, 30.0, 50.0], [0.0]][seed % 4]
    pieces = {"".join(noise.choices(letters[:5], k=noise.randint(1, 4))) for _ in range(40)}
    vocab = [("<unk>", 0.0), *((piece, noise.choice(scores)) for piece in sorted(pieces))]
    vocab += noise.sample(vocab[1:], 3)  # of equal pieces the last counts
    texts = ["".join(noise.choices(letters + "<unk> ", k=noise.randint(1, 60))) for _ in range(300)]
    assert not left_out(small(vocab), [*texts, "<unk>", "a<unk>", "<unk>字"])


@pytest.mark.parametrize("seed", range(5))
def test_random_unicode_gives_the_same_ids(xglm, seed):
    noise = random.Random(seed)
    planes = [range(0x80), range(0x3100), range(0xD800), range(0xE000, sys.maxunicode + 1)]
    marks = [
        " ",
        "  ",
        "\r",
        "\n",
        "\u0301",
        "\u0323",
        "\u200d",
        "\u0600",
        "\u0e33",
        "\u1100",
        "\uac00",
        "\u11a8",
    ]
    texts = [
        "".join(
            noise.choice(marks) if noise.random() < 0.3 else chr(noise.choice(noise.choice(planes)))
            for _ in range(noise.randint(1, 12))
        )
        for _ in range(4000)
    ]
    assert len(left_out(xglm, texts)) < len(texts) / 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "context",
    ["a{}", "{}a", "a{}\u0301x", "{}e\u0301x", "\u0627{}\u0653 ", "{}\ud55c\u0301 ", "\u0e01{}\r\n"],
)
def test_every_character_gives_the_same_ids(xglm, context):
    letters = [chr(code) for code in range(sys.maxunicode + 1)]
    left_out(xglm, [context.format(one) for one in letters if unicodedata.category(one) not in UNUSED])


def test_special_tokens_leave_a_text_to_the_tokenizer(xglm):
    assert left_out(xglm, ["a</s>b", "<s>", "a <pad> b", "</s", "< s>", "<unk>"]) == [
        "a</s>b",
        "<s>",
        "a <pad> b",
        "<unk>",
    ]
    tokenizer = small(normalizer=normalizers.Sequence([JOINED]))
    tokenizer.add_tokens([AddedToken("x  y", normalized=True), AddedToken("<é>", normalized=False)])
    assert left_out(tokenizer, ["ax   y", "ax y", "a<é>", "a<e>"]) == ["ax   y", "a<é>"]


def test_words_that_were_met_and_forgotten_get_the_same_ids(xglm):
    encoder = unigram_encoder(xglm)
    first = encoder.encode(TEXTS, 2)
    assert encoder.encode(TEXTS, 2) == first
    letters = string.ascii_lowercase
    many = (
        f"{a}{b}{c}{d} " for a in letters for b in letters for c in letters for d in letters + string.digits
    )
    encoder.encode(["".join(many), " ".join(map(str, range(500_000)))], 2)  # more words than are remembered
    assert encoder.encode(TEXTS, 2) == first


def test_narrow_and_wide_ids_are_the_same_numbers(xglm):
    encoder = unigram_encoder(xglm)
    [narrow], [wide] = encoder.encode(["long words"], 2), encoder.encode(["long words"], 4)
    assert np.array_equal(np.frombuffer(narrow, dtype=np.uint16), np.frombuffer(wide, dtype=np.int32))


@pytest.mark.parametrize(
    "parts",
    [
        {"normalizer": normalizers.Lowercase()},
        {"normalizer": normalizers.Replace(Regex(" {3,}"), META)},
        {"normalizer": normalizers.Replace("  ", META)},
        {"normalizer": normalizers.Replace(Regex(" {2,}"), "__")},
        {"pre_tokenizer": pre_tokenizers.Whitespace()},
        {"pre_tokenizer": pre_tokenizers.Metaspace(split=False)},
        {"pre_tokenizer": pre_tokenizers.Metaspace(prepend_scheme="first")},
        {"pre_tokenizer": pre_tokenizers.Metaspace(replacement="_")},
        {
            "pre_tokenizer": pre_tokenizers.Sequence(
                [pre_tokenizers.Metaspace(), pre_tokenizers.WhitespaceSplit()]
            )
        },
    ],
)
def test_unknown_parts_are_refused(parts):
    assert unigram_encoder(small()) is not None
    assert unigram_encoder(small(**parts)) is None


def test_unknown_models_are_refused():
    for model in (
        models.Unigram([("a", -1.0)], unk_id=None),
        models.Unigram([("a", -1.0)], unk_id=0, byte_fallback=True),
        models.Unigram([("a", -1.0), ("", -1.0)], unk_id=0),
        models.BPE(vocab={"a": 0}, merges=[]),
    ):
        tokenizer = small()
        tokenizer.model = model
        assert unigram_encoder(tokenizer) is None


def test_what_is_no_text_is_refused():
    encoder = unigram_encoder(small())
    assert encoder.encode(["a", "\ud800", "a"], 2)[1] is None
    with pytest.raises(TypeError, match=r"texts\[1\] is a int"):
        encoder.encode(["a", 1], 2)
    with pytest.raises(ValueError, match="itemsize=8"):
        encoder.encode(["a"], 8)
