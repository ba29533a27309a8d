"""The architectures that Hugging Face folders may have, told apart by their config.json alone."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xelm_nemo.checkpoint import opt, xglm
from xelm_nemo.checkpoint.facts import ModelFacts
from xelm_nemo.checkpoint.mapping import WeightMap
from xelm_nemo.errors import ArtifactError, CheckpointError
from xelm_nemo.files import read_json
from xelm_nemo.model.config import ModelConfig, shape_problems

CONFIG = "config.json"


@dataclass(frozen=True)
class Architecture:
    """How Hugging Face writes the models of one architecture.

    Attributes:
        title: what people call it.
        config_problems: a config.json -> why no model of ours computes what it describes.
        read_config: a config.json without problems -> the shape.
        write_config: a model's facts -> its config.json.
        weight_map: shape and vocabulary size without padding -> names of the weights.
    """

    title: str
    config_problems: Callable[[Mapping[str, Any]], list[str]]
    read_config: Callable[[Mapping[str, Any]], ModelConfig]
    write_config: Callable[[ModelFacts], dict[str, Any]]
    weight_map: Callable[[ModelConfig, int], WeightMap]


# model.architecture, which is Hugging Face's model_type -> how it is written.
ARCHITECTURES = {
    "xglm": Architecture("XGLM", xglm.config_problems, xglm.read_config, xglm.write_config, xglm.weight_map),
    "opt": Architecture("OPT", opt.config_problems, opt.read_config, opt.write_config, opt.weight_map),
}


def read_shape(folder: Path) -> ModelConfig:
    """The shape that the config.json of a Hugging Face folder describes.

    Raises:
        ArtifactError: the file is missing or holds no settings.
        CheckpointError: all settings that are missing, or that our model cannot compute with.
    """
    return shape_of(read_json(folder / CONFIG), str(folder / CONFIG))


def read_vocab_size(folder: Path) -> int:
    """The rows of the embedding that the config.json of a folder describes, which `read_shape` can read."""
    return int(read_json(folder / CONFIG)["vocab_size"])


def shape_of(config: Any, source: str) -> ModelConfig:
    """The shape that the content of a config.json describes; `source` is what errors call it.

    Raises:
        ArtifactError: it holds no settings.
        CheckpointError: all settings that are missing, or that our model cannot compute with.
    """
    titles = " or ".join(architecture.title for architecture in ARCHITECTURES.values())
    if not isinstance(config, Mapping):
        raise ArtifactError(f"{source} holds no settings; give the folder of an {titles} checkpoint.")
    architecture = ARCHITECTURES.get(str(config.get("model_type")))
    if architecture is None:
        raise CheckpointError(
            f"{source}: model_type={config.get('model_type')!r} is none of {sorted(ARCHITECTURES)}; "
            f"give the folder of an {titles} checkpoint."
        )
    if problems := architecture.config_problems(config):
        raise CheckpointError(
            f"{source}: {'; '.join(problems)}. Use an {architecture.title} checkpoint without these settings."
        )
    shape = architecture.read_config(config)
    if problems := shape_problems(shape):
        raise CheckpointError(f"{source}: {'; '.join(problems)}.")
    return shape
