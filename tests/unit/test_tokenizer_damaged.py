"""Tokenizers that cannot be read, or that would run code, are one line."""

import json

import pytest

from tests.helpers.random_opt import write_opt_tokenizer
from xelm_nemo.corpus.tokenizer import load_tokenizer
from xelm_nemo.errors import ArtifactError


def refused(folder):
    with pytest.raises(ArtifactError) as caught:
        load_tokenizer(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_code_that_a_tokenizer_brings_does_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # what transformers would ask for
    write_opt_tokenizer(["a few words"], tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings |= {"auto_map": {"AutoTokenizer": ["evil.Words", None]}, "tokenizer_class": "Words"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Words: pass\n")
    refused(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "name, data",
    [
        ("tokenizer.json", b'{"version": "1.0", "model": {"type'),
        ("tokenizer.json", b'{"version": "1.0", "model": {"type": "Other"}}'),
        ("tokenizer.json", b""),
        ("tokenizer_config.json", b"[]"),
        ("vocab.json", b"[1, 2]"),
        ("sentencepiece.bpe.model", b""),
        ("sentencepiece.bpe.model", b"\x0a\x10\x0a"),
    ],
)
def test_damaged_tokenizer_is_one_line(tmp_path, name, data):
    write_opt_tokenizer(["a few words"], tmp_path)
    if name == "sentencepiece.bpe.model":
        for path in tmp_path.iterdir():
            path.unlink()
        (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "XGLMTokenizer"}')
    if name == "vocab.json":
        (tmp_path / "tokenizer.json").unlink(missing_ok=True)
    (tmp_path / name).write_bytes(data)
    refused(tmp_path)
