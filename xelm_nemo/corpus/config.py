"""Settings of the corpus and its tokenizer."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CorpusConfig:
    """Where documents are: `<path>/<split>/<shard>/*.jsonl`, or what such a corpus is made from."""

    path: str | None = None  # a folder in the corpus layout
    builtin: str | None = (
        None  # used when path and raw are None; "udhr": written to <output>/corpus on first use
    )
    raw: str | None = None  # a folder of mC4's files, or of one folder a language: made into <output>/corpus
    languages: list[str] | None = None  # of raw; None takes all
    num_shards: int = 1  # of the training split made from raw
    seed: int = 1234  # of the order of the documents made from raw
    text_key: str = "text"
    source_key: str | None = None  # of instruction data, instead of text_key: what is read and not learned,
    target_key: str | None = None  # and what is learned after it; both or neither
    lang_key: str = "lang"
    id_key: str | None = "id"  # two lines of a file with the same id are an error; None: nobody looks
    on_bad_line: str = "error"  # or "skip": such lines are left out, counted and reported
    train_split: str = "train"
    valid_split: str = "valid"
    test_split: str = "test"  # evaluation reads this one


@dataclass(frozen=True)
class TokenizerConfig:
    """A Hugging Face tokenizer folder, or the size of a SentencePiece model to train on the corpus."""

    path: str | None = None  # None trains one with XGLM's id conventions
    vocab_size: int = 4096  # of the trained one, the four special tokens included
    kind: str = "unigram"  # or "bpe"; XGLM's is unigram
