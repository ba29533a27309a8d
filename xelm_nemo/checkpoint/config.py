"""Settings of the seed model."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SeedModelConfig:
    """What the experts are branched from."""

    source: str = "hf"  # "hf", "metaseq", "nemo", "model" (a finished one of ours), or "random"
    path: str | None = None  # folder, of a metaseq model also a file, of an HF model also a hub id
    train_iters: int = 0  # a random seed model first trains on all clusters for this long
    lr: float | None = None  # None: as the experts
    seed: int = 1234
    vocab_size: int | None = None  # of a random one, at least as many as ids; None: the tokenizer's
    threads: int = 1  # CPU threads of its training, which nothing runs beside
