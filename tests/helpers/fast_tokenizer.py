"""XGLM's kind of tokenizer as a tokenizer.json."""

from transformers import XGLMTokenizerFast

from xelm_nemo.corpus.config import TokenizerConfig
from xelm_nemo.corpus.tokenizer import load_tokenizer, train_tokenizer


def fast_xglm(texts, vocab_size, folder):
    """The tokenizer trained on the texts."""
    train_tokenizer(texts, TokenizerConfig(vocab_size=vocab_size), folder / "slow")
    XGLMTokenizerFast.from_pretrained(str(folder / "slow")).save_pretrained(folder / "fast")
    return load_tokenizer(folder / "fast")
