"""What tokens add to a text, for the tokenizers of which that is known: XGLM's and OPT's.

The text of a prefix is by definition `tokenizer.decode(ids[:j], skip_special_tokens=True,
clean_up_tokenization_spaces=False)`. Four classes of Hugging Face join tokens, special ones left out:

| tokenizer | its text |
| --- | --- |
| fast, decoder ByteLevel (OPT) | the tokens' bytes joined, then read as UTF-8 with U+FFFD for what is none |
| fast, decoder Metaspace (XGLM) | U+2581 is a space, but nothing in the first token |
| `GPT2Tokenizer` (OPT without tokenizer.json) | as ByteLevel |
| `XGLMTokenizer` (XGLM without tokenizer.json) | U+2581 is a space; white space at both ends is stripped |

So the text of ids[:j + 1] is that of ids[:j] with something behind it, but for a U+FFFD at its end that
stood for a character's first bytes. Other tokenizers, and documents with tokens that these treat in another
way, are decoded prefix by prefix.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from xelm_nemo._csrc import TokenPieces

_TRIED_TOKENS = 64
_KNOWN: "WeakKeyDictionary[Any, Pieces | None]" = WeakKeyDictionary()


class Decoder(Protocol):
    """The one method of a Hugging Face tokenizer that the router calls."""

    def decode(
        self, token_ids: Sequence[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool
    ) -> str:
        """The text of the tokens."""


@dataclass(frozen=True)
class Pieces:
    """The tokens of a tokenizer.

    Attributes:
        in_cpp: what each adds to a text.
        is_known: [V] bool, whether that is all that it does.
    """

    in_cpp: TokenPieces
    is_known: NDArray[np.bool_]

    def cover(self, ids: NDArray[np.int32]) -> bool:
        """Whether texts of these tokens are known."""
        if not len(ids):
            return True
        in_range = ids.min() >= 0 and ids.max() < len(self.is_known)
        return bool(in_range and self.is_known[ids].all())


def decoded(tokenizer: Decoder, ids: Sequence[int]) -> str:
    """The text of a prefix, by definition."""
    # No clean-up: it would join "do n't", and the router must see the text as the clusterer did.
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def pieces_of(tokenizer: Any) -> Pieces | None:
    """The tokens of a tokenizer, which must not change from then on; None for one of an unknown kind.

    A few texts are compared with what it decodes, should it be another than its class says.
    """
    if not hasattr(tokenizer, "is_fast"):
        return None
    if tokenizer not in _KNOWN:
        pieces = _fast(tokenizer) if tokenizer.is_fast else _slow(tokenizer)
        _KNOWN[tokenizer] = pieces if pieces and _agrees(pieces, tokenizer) else None
    return _KNOWN[tokenizer]


def _fast(tokenizer: Any) -> Pieces | None:
    backend = tokenizer.backend_tokenizer
    decoder = json.loads(backend.decoder.__getstate__()) if backend.decoder else {}
    size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
    tokens = [backend.id_to_token(token_id) for token_id in range(size)]
    special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    if decoder.get("type") == "ByteLevel":
        return _byte_level(tokens, special, set())
    if decoder.get("type") == "Metaspace" and decoder["replacement"] == "\u2581":
        never = decoder["prepend_scheme"] == "never"
        return None if never else _pieces(tokens, special, set(), "left_out_of_first")
    return None


def _slow(tokenizer: Any) -> Pieces | None:
    kind = type(tokenizer).__name__
    if kind not in ("XGLMTokenizer", "GPT2Tokenizer"):
        return None
    size = tokenizer.vocab_size
    tokens, special = tokenizer.convert_ids_to_tokens(range(size)), set(tokenizer.all_special_tokens)
    # A token that was added, and is not special, has spaces put around it.
    spaced = set(tokenizer.get_added_vocab()) - special
    if kind == "XGLMTokenizer":
        return _pieces(tokens, special, spaced, "stripped")
    return _byte_level(tokens, special, spaced) if tokenizer.errors == "replace" else None


def _byte_level(tokens: Sequence[str | None], special: set[str], unknown: set[str]) -> Pieces | None:
    byte_of = _bytes_of_letters()

    def to_bytes(token: str) -> bytes:
        found = [byte_of.get(letter) for letter in token]
        return token.encode() if None in found else bytes(found)  # type: ignore[arg-type]

    pieces = [to_bytes(token or "") for token in tokens]
    return _made(pieces, tokens, special, unknown, "kept")


def _pieces(tokens: Sequence[str | None], special: set[str], unknown: set[str], metas: str) -> Pieces | None:
    return _made([(token or "").encode() for token in tokens], tokens, special, unknown, metas)


def _made(
    pieces: list[bytes], tokens: Sequence[str | None], special: set[str], unknown: set[str], metas: str
) -> Pieces:
    is_special = [token in special for token in tokens]
    is_known = np.array([token is not None and token not in unknown for token in tokens])
    return Pieces(TokenPieces(pieces, is_special, metas=metas), is_known)


def _bytes_of_letters() -> dict[str, int]:
    """GPT-2's letter for each byte: itself where it is visible in Latin-1, else one from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _agrees(pieces: Pieces, tokenizer: Decoder) -> bool:
    known = np.flatnonzero(pieces.is_known).tolist()
    draw = random.Random(0)
    ids = [draw.choice(known) for _ in range(_TRIED_TOKENS)]
    expected = [decoded(tokenizer, ids[: j + 1]) for j in range(len(ids))]
    return pieces.in_cpp.texts(np.array(ids, np.int32)) == expected
