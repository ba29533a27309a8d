import json

from xelm_nemo.bench.shards import measure_shards
from xelm_nemo.corpus.config import TokenizerConfig
from xelm_nemo.corpus.tokenizer import train_tokenizer
from xelm_nemo.corpus.udhr import documents


def test_both_ways_write_the_same_tokens_and_are_timed(tmp_path):
    texts = [row["text"] for row in documents()][:60]
    train_tokenizer(texts, TokenizerConfig(vocab_size=2048), tmp_path / "tokenizer")
    files = [tmp_path / "train/0/a.jsonl", tmp_path / "train/0/b.jsonl"]
    files[0].parent.mkdir(parents=True)
    for path, some in zip(files, (texts[:40], texts[40:]), strict=True):
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in some))
    row = measure_shards(tmp_path, files, tmp_path / "tokenizer", rounds=1)
    assert row["bytes"] == sum(path.stat().st_size for path in files)
    assert row["tokens"] > len(texts)
    assert row["ratio"] > 0
