"""What a model folder holds, and what its `model.json` says of the model."""

import dataclasses
from pathlib import Path

from xelm_nemo import artifacts
from xelm_nemo.files import read_json, write_json
from xelm_nemo.model.config import ModelConfig

FACTS = "model.json"
WEIGHTS = "weights"  # the folder of its distributed checkpoint


@dataclasses.dataclass(frozen=True)
class ModelFacts:
    """What is known of a model without its weights; enough to build it again."""

    shape: ModelConfig
    vocab_size: int  # of the tokenizer, without padding
    dtype: str  # of the weights: "fp32" or "bf16" in a model folder, "fp16" too in an export
    tokenizer: str  # folder or hub id of its tokenizer
    iteration: int = 0
    consumed_tokens: int = 0
    parent: str | None = None  # the model folder that it was branched from
    name: str = "model"
    origin_dtype: str | None = None  # "fp16" where weights came so and were not trained since


def write_facts(folder: Path, facts: ModelFacts) -> None:
    """Write what is known of a model; its tokenizer's folder so that any working directory finds it."""
    place = Path(facts.tokenizer)
    words = str(place.absolute()) if place.is_dir() else facts.tokenizer
    write_json(folder / FACTS, dataclasses.asdict(facts) | {"tokenizer": words})


def load_facts(folder: Path) -> ModelFacts:
    """What is known of a model folder without loading its weights.

    Raises:
        ArtifactError: the folder is not a finished model.
    """
    artifacts.check(folder, "model")
    facts = read_json(folder / FACTS)
    return ModelFacts(**facts | {"shape": ModelConfig(**facts["shape"])})
