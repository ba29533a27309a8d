"""Text to token shards, per core, against the way of Megatron-LM's `tools/preprocess_data.py`.

That script is not in the megatron-core wheel. What it does is restated here: each worker has a tokenizer of
Hugging Face, parses a line, tokenises its text, and hands the ids to `IndexedDatasetBuilder`.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from xelm_nemo.clustering.assign import assignment_file, write_assignment
from xelm_nemo.corpus.documents import read_file
from xelm_nemo.corpus.tokenizer import load_tokenizer
from xelm_nemo.shards.build import (
    JoinPieces,
    TokeniseFile,
    join_pieces,
    load_encoder,
    token_dtype,
    tokenise_file,
)


def measure_shards(
    corpus: Path, files: Sequence[Path], tokenizer: Path, *, rounds: int = 3
) -> dict[str, Any]:
    """CPU seconds of both ways over the same JSONL files, one process and one thread each.

    The ways alternate, with the tokenizer loaded. Ours begins each time without a word in memory, and reads
    the clusters too.

    Args:
        corpus: the folder that the files are in.
        files: `.jsonl` files whose lines all have a text.
        tokenizer: its folder.
        rounds: of which the median counts.

    Returns:
        JSON values: MB of JSONL a second for each way, their ratio, the bytes and tokens.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    ours, theirs = [], []
    with TemporaryDirectory() as folder:
        clusters = Path(folder, "clusters")
        for path in files:
            rows = ((document.sp_id, 0) for document in read_file(corpus, path, id_key=None))
            write_assignment(assignment_file(clusters, path.relative_to(corpus).as_posix()), rows)
        for number in range(rounds):
            here = Path(folder, str(number))
            load_encoder(tokenizer, str(here))
            theirs.append(_seconds(partial(_megatron, files, load_tokenizer(tokenizer), here / "theirs")))
            ours.append(_seconds(partial(_ours, corpus, files, tokenizer, clusters, here)))
            same = [(here / way).with_suffix(".bin").read_bytes() for way in ("theirs", "ours")]
            assert same[0] == same[1], "the two ways wrote different tokens"
        tokens = len(same[0]) // np.dtype(token_dtype(len(load_tokenizer(tokenizer)))).itemsize
    size = sum(path.stat().st_size for path in files)
    return {
        "case": "shards",
        "bytes": size,
        "tokens": tokens,
        "ours_mb_s": size / 1e6 / median(ours),
        "megatron_mb_s": size / 1e6 / median(theirs),
        "ratio": median(theirs) / median(ours),
    }


def _seconds(call: Callable[[], None]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def _ours(corpus: Path, files: Sequence[Path], tokenizer: Path, clusters: Path, folder: Path) -> None:
    pieces = [folder / f"pieces{number}" for number in range(len(files))]
    for path, piece in zip(files, pieces, strict=True):
        keys = {"id_key": None}
        tokenise_file(TokeniseFile(corpus, path, keys, False, clusters, 1, tokenizer, str(folder), piece))
    dtype = token_dtype(len(load_tokenizer(tokenizer))).__name__
    join_pieces(JoinPieces(pieces, 0, dtype, folder / "ours"))


def _megatron(files: Sequence[Path], tokenizer: Any, prefix: Path) -> None:
    eos = tokenizer.eos_token_id
    prefix.parent.mkdir(parents=True, exist_ok=True)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=token_dtype(len(tokenizer)))
    for path in files:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                text = json.loads(line)["text"]
                ids = [eos, *tokenizer(text, add_special_tokens=False, verbose=False).input_ids, eos]
                builder.add_document(ids, [len(ids)])
    builder.finalize(f"{prefix}.idx")
