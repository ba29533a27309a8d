"""Token ids of many documents, each as `encode_document` gives them, at a fraction of the time.

A unigram model, as XGLM's, runs in C++ (`corpus/unigram.py`). Byte-level BPE, as OPT's, cuts text at spaces
before anything else, and so gives a word the same ids wherever it stands: a word is encoded once and looked
up from then on. Where a cut may not be one, as before a run of spaces, the words stay together.
"""

import json
import re
import unicodedata
from array import array
from collections.abc import Container, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from xelm_nemo.corpus.tokenizer import SPECIAL_IDS, XGLM_OFFSET, encode_document
from xelm_nemo.corpus.unigram import parts, unigram_encoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ANGLES = frozenset("<\ufe64\uff1c")  # special tokens begin with one of these, or what is normalised to one
_WORDS = re.compile(r"[ \n]*[^ \n]+|[ \n]+\Z")  # each with the spaces before it; spaces at the end
_ROOM = 1 << 24  # for remembered words, of which each takes its letters and 16: about 200 MB
_BYTE_LEVEL = {"type": "ByteLevel", "use_regex": True, "add_prefix_space": False}


class DocumentEncoder:
    """A tokenizer for many documents.

    Attributes:
        itemsize: bytes of one id.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", dtype: type[np.uint16] | type[np.int32]) -> None:
        """Take a tokenizer and what ids are stored as."""
        self._tokenizer, self._dtype = tokenizer, dtype
        self.itemsize = np.dtype(dtype).itemsize
        self._code = np.dtype(dtype).char
        self._end = self._bytes([tokenizer.eos_token_id])
        self._fast: Any = tokenizer.backend_tokenizer if tokenizer.is_fast else None
        is_xglm = self._fast is None and type(tokenizer).__name__ == "XGLMTokenizer"
        self._pieces: Any = tokenizer.sp_model if is_xglm else None
        self._ids_of: dict[str, bytes] = {}
        self._room = _ROOM
        self._unigram, self._by_words = None, False
        if self._fast is not None:
            self._fast.no_truncation()
            self._fast.no_padding()
            self._unigram = unigram_encoder(self._fast)
            self._by_words = cuts_at_spaces(json.loads(self._fast.to_str()))

    def encode(self, texts: Sequence[str]) -> list[bytes]:
        """The ids of each text as the bytes of an array, `</s>` at both ends."""
        if self._fast is None:
            return [self._slow(text) for text in texts]
        if self._unigram is not None:
            some = self._unigram.encode(list(texts), self.itemsize)
            rest = self._encode([text for text, ids in zip(texts, some, strict=True) if ids is None])
            return [self._end + (next(rest) if ids is None else ids) + self._end for ids in some]
        if not self._by_words:
            return [self._end + ids + self._end for ids in self._encode(texts)]
        words_of = [_WORDS.findall(text) for text in texts]
        if self._room < 0:
            self._ids_of, self._room = {}, _ROOM
        loose = self._learn(set().union(*words_of) - self._ids_of.keys())
        return self._join(words_of, loose)

    def _slow(self, text: str) -> bytes:
        """The ids by SentencePiece itself, where nothing in the text may be taken for a special token."""
        if self._pieces is None or not _ANGLES.isdisjoint(text):
            return self._bytes(encode_document(self._tokenizer, text))
        unk = SPECIAL_IDS["<unk>"]
        ids = [piece + XGLM_OFFSET if piece else unk for piece in self._pieces.encode(text, num_threads=1)]
        return self._end + self._bytes(ids) + self._end

    def _learn(self, words: set[str]) -> set[str]:
        """Remember the ids of those words that are the same wherever they stand; the others."""
        alone = [word for word in words if _begins_alone(word) and _ends_alone(word)]
        self._ids_of.update(zip(alone, self._encode(alone), strict=True))
        self._room -= sum(len(word) + 16 for word in alone)
        return words.difference(alone)

    def _join(self, words_of: list[list[str]], loose: set[str]) -> list[bytes]:
        """The ids of texts from those of their words; what is loose goes with its neighbours."""
        known, end = self._ids_of, self._end
        groups_of = {
            n: _groups(words, known) for n, words in enumerate(words_of) if not loose.isdisjoint(words)
        }
        rare = list(set().union(*groups_of.values()) - known.keys())
        ids_of = dict(zip(rare, self._encode(rare), strict=True))
        return [
            b"".join([end, *map(known.__getitem__, words), end])
            if n not in groups_of
            else b"".join([end, *(known[g] if g in known else ids_of[g] for g in groups_of[n]), end])
            for n, words in enumerate(words_of)
        ]

    def _encode(self, texts: Sequence[str]) -> Iterator[bytes]:
        for encoding in self._fast.encode_batch_fast(texts, add_special_tokens=False):
            yield self._bytes(encoding.ids)

    def _bytes(self, ids: Sequence[int]) -> bytes:
        return array(self._code, ids).tobytes()  # for a few ids numpy takes three times as long


def cuts_at_spaces(spec: dict[str, Any]) -> bool:
    """Whether a tokenizer.json is byte-level BPE of GPT-2's kind, to which a word is the same everywhere."""
    cutters = parts(spec["pre_tokenizer"], "pretokenizers")
    return (
        spec["normalizer"] is None
        and len(cutters) == 1
        and _BYTE_LEVEL.items() <= cutters[0].items()
        and spec["model"]["type"] == "BPE"
        and not spec["model"].get("dropout")
        and not any(_reaches_out(token) for token in spec["added_tokens"])
    )


def _reaches_out(token: dict[str, Any]) -> bool:
    """Whether a token that is written out in a text takes in, or looks at, what stands beside it."""
    return token["rstrip"] or token["single_word"] or any(letter.isspace() for letter in token["content"])


def _begins_alone(word: str) -> bool:
    """Whether at most one space is before it and it begins with no other kind of space."""
    first = word[1:2] if word[0] in " \n" else word[0]
    return _is_solid(first or " ")


def _ends_alone(word: str) -> bool:
    return _is_solid(word[-1]) or unicodedata.category(word[-1])[0] == "M"


def _is_solid(letter: str) -> bool:
    """Whether it is a letter, number or mark of punctuation."""
    return "!" <= letter <= "~" or unicodedata.category(letter)[0] in "LNP"


def _groups(words: Sequence[str], alone: Container[str]) -> list[str]:
    """The words of a text, those together between which it may not be cut."""
    groups, is_open = list[str](), False
    for word in words:
        known = word in alone
        if groups and (is_open or not (known or _begins_alone(word))):
            groups[-1] += word
        else:
            groups.append(word)
        is_open = not (known or _ends_alone(word))
    return groups
