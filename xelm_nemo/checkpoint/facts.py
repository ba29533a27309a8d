"""What a model folder holds, and what its `model.json` says of the model."""

import dataclasses
from pathlib import Path
from typing import Any

from xelm_nemo import artifacts
from xelm_nemo.errors import ArtifactError
from xelm_nemo.files import read_json, write_json
from xelm_nemo.model.config import ModelConfig, SparseConfig

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
        ArtifactError: the folder is not a finished model, or its facts are damaged or of a newer version.
    """
    artifacts.check(folder, "model")
    path = folder / FACTS
    facts = _checked(ModelFacts, read_json(path), path)
    sizes = facts["shape"]
    kind = SparseConfig if isinstance(sizes, dict) and "num_moe_experts" in sizes else ModelConfig
    return ModelFacts(**facts | {"shape": kind(**_checked(kind, sizes, path))})


def _checked(kind: type[ModelFacts] | type[ModelConfig], values: Any, path: Path) -> dict[str, Any]:
    """The values, which are the fields of a dataclass and lack none without a default."""
    fields = dataclasses.fields(kind)
    needed = [field.name for field in fields if field.default is dataclasses.MISSING]
    if not isinstance(values, dict) or any(name not in values for name in needed):
        wanted = ", ".join(needed) or "the sizes of a model"
        raise ArtifactError(f"{path} does not hold {wanted}; make or fetch its folder again.")
    if unknown := sorted(values.keys() - {field.name for field in fields}):
        raise ArtifactError(
            f"{path} has {', '.join(unknown)}, which this version does not know; use the version of "
            "xelm_nemo that wrote it."
        )
    return values
