"""Tokenizers: any Hugging Face folder, or a SentencePiece model trained here with XGLM's id conventions."""

import io
from collections.abc import Iterable, Iterator
from itertools import chain, dropwhile
from pathlib import Path
from typing import TYPE_CHECKING

from xelm_nemo.corpus.config import TokenizerConfig
from xelm_nemo.errors import ArtifactError, ConfigError, CorpusError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPECIAL_IDS = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}  # fairseq's, and so XGLM's and OPT's
END = "</s>"
_FILES = ("tokenizer*.json", "*.model", "vocab*")
XGLM_MADEUP_WORDS = 7  # <madeupword0..6> close the vocabulary
XGLM_OFFSET = 1  # SentencePiece piece i has id i + 1, for fairseq puts <pad> between
_NORMALIZATION = "nmt_nfkc"  # XGLM's: newlines and tabs become spaces
_LONGEST_BYTES = 1 << 20  # SentencePiece leaves longer texts out


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig, folder: Path) -> None:
    """Train a SentencePiece model on the texts and write it as an XGLM tokenizer folder.

    The result depends on the texts and the settings alone: training uses one thread. A corpus too small
    for `vocab_size` pieces gives a smaller vocabulary.

    Raises:
        ConfigError: tokenizer.kind is unknown or SentencePiece refuses the settings.
        CorpusError: the texts have no visible character.
    """
    import sentencepiece
    from transformers import XGLMTokenizer

    if config.kind not in ("unigram", "bpe"):
        raise ConfigError(f"tokenizer.kind={config.kind!r} is not known; use 'unigram' (as XGLM) or 'bpe'.")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_trainable(texts),
            model_writer=model,
            model_type=config.kind,
            vocab_size=config.vocab_size - XGLM_OFFSET - XGLM_MADEUP_WORDS,
            hard_vocab_limit=False,
            normalization_rule_name=_NORMALIZATION,
            max_sentence_length=_LONGEST_BYTES,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ConfigError(f"tokenizer.vocab_size={config.vocab_size} does not train: {error}") from error
    folder.mkdir(parents=True, exist_ok=True)
    vocab_file = folder / "sentencepiece.bpe.model"
    vocab_file.write_bytes(model.getvalue())
    XGLMTokenizer(str(vocab_file)).save_pretrained(folder)


def _trainable(texts: Iterable[str]) -> Iterator[str]:
    """The texts in pieces that SentencePiece reads, from the first one on that it sees something in.

    Raises:
        CorpusError: it would see nothing in any of them, upon which it ends the whole process.
    """
    from sentencepiece import SentencePieceNormalizer

    normalizer = SentencePieceNormalizer(rule_name=_NORMALIZATION)
    size = _LONGEST_BYTES // 4  # bytes of the longest character in UTF-8
    pieces = (text[start : start + size] for text in texts for start in range(0, len(text), size))
    visible = dropwhile(lambda piece: not normalizer.normalize(piece).strip(), pieces)
    first = next(visible, None)
    if first is None:
        raise CorpusError(
            "corpus.train_split has no visible character to train a tokenizer on; give it documents with "
            "text, or set tokenizer.path."
        )
    return chain([first], visible)


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has the files of a tokenizer."""
    return any(path for pattern in _FILES for path in folder.glob(pattern))


def load_tokenizer(folder: Path | str) -> "PreTrainedTokenizerBase":
    """The tokenizer of a folder (or hub id), with its special ids checked.

    Raises:
        ArtifactError: there is no tokenizer, it has no end-of-document token, or it is XGLM's or OPT's with
            other ids of the special tokens than the weights were trained with.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerBase

    if Path(folder).is_dir() and not has_tokenizer(Path(folder)):  # for which transformers has many errors
        raise ArtifactError(f"{folder} holds no tokenizer.")
    try:
        # Without tokenizer.json the fast class would convert the SentencePiece model at every load.
        fast = not Path(folder).is_dir() or (Path(folder) / "tokenizer.json").is_file()
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(folder), use_fast=fast, trust_remote_code=False
        )
    except Exception as error:  # of a damaged file it lets through whatever its readers raise
        raise ArtifactError(f"{folder} holds no tokenizer that can be read ({first_line(error)}).") from error
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ArtifactError(f"{folder} holds no tokenizer that can be read.")
    if tokenizer.eos_token_id is None:
        raise ArtifactError(f"{folder}: the tokenizer has no end-of-document token (eos); X-ELM needs one.")
    if _is_published(tokenizer):
        check_special_ids(tokenizer, folder)
    return tokenizer


def _is_published(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether it is of XGLM's kind, or of OPT's: GPT-2's with another end."""
    kind = type(tokenizer).__name__
    return kind.startswith("XGLM") or (kind.startswith("GPT2") and tokenizer.eos_token == END)


def check_special_ids(tokenizer: "PreTrainedTokenizerBase", folder: Path | str) -> None:
    """See that the special tokens have the ids that XGLM's and OPT's weights were trained with.

    Raises:
        ArtifactError: says which ids they have.
    """
    found = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_IDS}
    if found != SPECIAL_IDS:
        raise ArtifactError(
            f"{folder}: special tokens have ids {found}, those of XGLM and OPT are {SPECIAL_IDS}; set "
            "tokenizer.path=DIR to the model's own tokenizer."
        )
    if tokenizer.eos_token != END:
        raise ArtifactError(
            f"{folder}: documents would end with {tokenizer.eos_token!r}, those of XGLM and OPT end with "
            f"{END!r}; set tokenizer.path=DIR to the model's own tokenizer."
        )


def encode_document(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Token ids of one document: `</s>`, the text, `</s>`, as X-ELM trains.

    The two are put here, once each, whatever the tokenizer's own template adds.
    """
    eos = tokenizer.eos_token_id
    return [eos, *tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], eos]
