"""Settings of the corpus and its tokenizer."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CorpusConfig:
    """Where documents are: `<path>/<split>/<shard>/*.jsonl`, or a corpus shipped with the package."""

    path: str | None = None  # a folder in the corpus layout
    builtin: str | None = None  # used when path is None; "udhr": written to <output>/corpus on first use
    text_key: str = "text"
    lang_key: str = "lang"
    train_split: str = "train"
    valid_split: str = "valid"
    test_split: str = "test"  # evaluation reads this one


@dataclass(frozen=True)
class TokenizerConfig:
    """A Hugging Face tokenizer folder, or the size of a SentencePiece model to train on the corpus."""

    path: str | None = None  # None trains one with XGLM's id conventions
    vocab_size: int = 4096  # of the trained one, the four special tokens included
    kind: str = "unigram"  # or "bpe"; XGLM's is unigram
