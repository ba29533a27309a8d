"""XGLM's kind of tokenizer in C++: a tokenizer.json all of whose parts `csrc/unigram_encoder.h` knows."""

import base64
import json
from typing import Any

from xelm_nemo._csrc import UnigramEncoder

META = "\u2581"  # SentencePiece's sign for a space
_RUN_OF_SPACES = {"Regex": " {2,}"}
_JOINED_TO = {" ": "spaces_to_space", META: "spaces_to_meta"}


def unigram_encoder(backend: Any) -> UnigramEncoder | None:
    """The encoder that gives the ids of a `tokenizers.Tokenizer`; None where one of its parts is not known.

    The texts that the encoder leaves to the tokenizer are few: those with special tokens, and with letters
    that normalisation may join to a neighbour.
    """
    spec = json.loads(backend.to_str())
    model = spec["model"]
    normalization = _normalization(parts(spec["normalizer"], "normalizers"))
    cuts_at_whitespace = _cuts_at_whitespace(parts(spec["pre_tokenizer"], "pretokenizers"))
    if normalization is None or cuts_at_whitespace is None or not _is_known(model):
        return None
    raw = [token["content"] for token in spec["added_tokens"] if not token["normalized"]]
    inner = [token["content"] for token in spec["added_tokens"] if token["normalized"]]
    if backend.normalizer is not None:
        inner = [backend.normalizer.normalize_str(content) for content in inner]
    if not all(raw + inner):
        return None
    charsmap, steps = normalization
    pieces, scores = zip(*model["vocab"], strict=True)
    return UnigramEncoder(
        list(pieces),
        list(scores),
        unk_id=model["unk_id"],
        charsmap=charsmap,
        steps=steps,
        cuts_at_whitespace=cuts_at_whitespace,
        raw_stoppers=raw,
        stoppers=inner,
    )


def parts(spec: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """The parts of a normalizer or pre-tokenizer, which is one or a sequence of them."""
    if spec is None:
        return []
    return list(spec[key]) if spec["type"] == "Sequence" else [spec]


def _normalization(normalizers: list[dict[str, Any]]) -> tuple[bytes, list[str]] | None:
    """The charsmap, and what is done to the text after it; None for what is not known."""
    charsmap, steps = b"", list[str]()
    if normalizers and normalizers[0]["type"] == "Precompiled":
        charsmap = base64.b64decode(normalizers[0]["precompiled_charsmap"] or "")
        normalizers = normalizers[1:]
    for part in normalizers:
        if part["type"] == "Strip":
            steps += ["strip_left"] * part["strip_left"] + ["strip_right"] * part["strip_right"]
        elif part.get("pattern") == _RUN_OF_SPACES and part["content"] in _JOINED_TO:
            steps.append(_JOINED_TO[part["content"]])
        else:
            return None
    return charsmap, steps


def _cuts_at_whitespace(cutters: list[dict[str, Any]]) -> bool | None:
    """Whether words are what lies between white space of any kind; None for what is not known."""
    metaspace = {"type": "Metaspace", "replacement": META, "prepend_scheme": "always", "split": True}
    if cutters == [metaspace]:
        return False
    return True if cutters == [{"type": "WhitespaceSplit"}, metaspace] else None


def _is_known(model: dict[str, Any]) -> bool:
    return (
        model["type"] == "Unigram"
        and model["unk_id"] is not None
        and not model["byte_fallback"]
        and model.keys() <= {"type", "unk_id", "vocab", "byte_fallback"}
        and all(piece for piece, _ in model["vocab"])
    )
