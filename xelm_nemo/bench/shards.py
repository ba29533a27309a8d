"""Text to token shards, per core, against the way of Megatron-LM's `tools/preprocess_data.py`.

That script is not in the megatron-core wheel. What it does is restated here: each worker has a tokenizer of
Hugging Face, parses a line, tokenises its text, and hands the ids to `IndexedDatasetBuilder`. Both have one
process and one thread, and are timed by the CPU's seconds, with the tokenizer loaded. Ours begins each time
without a word in memory, and reads the clusters too.
"""

import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

import numpy as np
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from xelm_nemo.bench.corpora import jsonl_files, texts_of
from xelm_nemo.bench.registry import Case, Provider, Sizes
from xelm_nemo.clustering.assign import assignment_file, write_assignment
from xelm_nemo.corpus.config import TokenizerConfig
from xelm_nemo.corpus.documents import read_file
from xelm_nemo.corpus.tokenizer import load_tokenizer, train_tokenizer
from xelm_nemo.shards.build import (
    JoinPieces,
    TokeniseFile,
    join_pieces,
    load_encoder,
    token_dtype,
    tokenise_file,
)

TRAINED = "trained"  # a tokenizer that is trained on the text


@dataclass
class Inputs:
    """JSONL files, their clusters and a tokenizer."""

    files: list[Path]
    clusters: Path
    tokenizer: Path
    scratch: TemporaryDirectory[str]  # is removed with the inputs
    numbers: Iterator[int] = field(default_factory=itertools.count)
    written: Path = Path()  # the tokens of the last run
    expected: bytes = b""  # Megatron's

    def new_folder(self) -> Path:
        """An empty one."""
        folder = Path(self.scratch.name, f"run{next(self.numbers)}")
        folder.mkdir()
        return folder


def make_inputs(sizes: Sizes) -> Inputs:
    """The corpus, with all documents in one cluster."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    scratch = TemporaryDirectory()
    place = Path(scratch.name)
    files = jsonl_files(sizes["corpus"], place)
    for path in files:
        rows = ((document.sp_id, 0) for document in read_file(path.parent, path, id_key=None))
        write_assignment(assignment_file(place / "clusters", path.name), rows)
    tokenizer = place / "tokenizer"
    if sizes["tokenizer"] == TRAINED:
        config = TokenizerConfig(vocab_size=sizes["vocab"])
        train_tokenizer((text for path in files for text in texts_of(path)), config, tokenizer)
    else:
        tokenizer = Path(sizes["tokenizer"])
    inputs = Inputs(files, place / "clusters", tokenizer, scratch)
    _megatron(inputs)()
    inputs.expected = inputs.written.read_bytes()
    return inputs


def _ours(inputs: Inputs) -> Callable[[], None]:
    folder = inputs.new_folder()
    load_encoder(inputs.tokenizer, str(folder))
    inputs.written = folder / "ours.bin"
    dtype = token_dtype(len(load_tokenizer(inputs.tokenizer))).__name__
    return partial(_run_ours, inputs.files, inputs.tokenizer, inputs.clusters, folder, dtype)


def _run_ours(files: Sequence[Path], tokenizer: Path, clusters: Path, folder: Path, dtype: str) -> None:
    pieces = [folder / f"pieces{number}" for number in range(len(files))]
    for path, piece in zip(files, pieces, strict=True):
        keys = {"id_key": None}
        tokenise_file(
            TokeniseFile(path.parent, path, keys, False, clusters, 1, tokenizer, str(folder), piece)
        )
    join_pieces(JoinPieces(pieces, 0, dtype, folder / "ours"))


def _megatron(inputs: Inputs) -> Callable[[], None]:
    prefix = inputs.new_folder() / "theirs"
    inputs.written = prefix.with_suffix(".bin")
    return partial(_run_megatron, inputs.files, load_tokenizer(inputs.tokenizer), prefix)


def _run_megatron(files: Sequence[Path], tokenizer: Any, prefix: Path) -> None:
    eos = tokenizer.eos_token_id
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=token_dtype(len(tokenizer)))
    for path in files:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                text = json.loads(line)["text"]
                ids = [eos, *tokenizer(text, add_special_tokens=False, verbose=False).input_ids, eos]
                builder.add_document(ids, [len(ids)])
    builder.finalize(f"{prefix}.idx")


def errors(inputs: Inputs, _: Callable[[], None]) -> dict[str, float]:
    """Whether the last run wrote other tokens than Megatron's way, which would end the comparison."""
    return {"tokens": float(inputs.written.read_bytes() != inputs.expected)}


def facts(inputs: Inputs) -> dict[str, Any]:
    """How much text it was, and how many tokens."""
    itemsize = np.dtype(token_dtype(len(load_tokenizer(inputs.tokenizer)))).itemsize
    num_bytes = sum(path.stat().st_size for path in inputs.files)
    return {"bytes": num_bytes, "tokens": len(inputs.expected) // itemsize}


def providers(_: Sizes) -> list[Provider]:
    """Megatron's way first."""
    ways = {"megatron": _megatron, "ours": _ours}
    return [Provider(name, way, clock=process_time, facts=facts) for name, way in ways.items()]


CASE = Case(
    name="shards",
    sizes={"corpus": ("udhr",), "tokenizer": (TRAINED,), "vocab": (8192,)},
    inputs=make_inputs,
    providers=providers,
    errors=errors,
    is_job=True,
)
