"""What NeMo 2 says of the model in a checkpoint folder, read without NeMo from `context/model.yaml`.

The other files of `context/` may hold pickles; none of them is opened.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from xelm_nemo.checkpoint.facts import WEIGHTS
from xelm_nemo.checkpoint.settings import is_size, rate_problems, size_problems
from xelm_nemo.errors import CheckpointError, first_line
from xelm_nemo.model.config import ACTIVATIONS, ModelConfig, shape_problems

CONTEXT, MODEL_YAML = "context", "model.yaml"
# What `context/model.yaml` calls the models of xelm_nemo.nemo -> model.architecture.
MODELS = {"xelm_nemo.nemo.models.XGLMModel": "xglm", "xelm_nemo.nemo.models.OPTModel": "opt"}
# Fields that the configurations of these models have under the same name.
_SIZES = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "max_position_embeddings")
_RATES = ("layernorm_epsilon", "init_method_std", "hidden_dropout", "attention_dropout")
_POST, _WIDTH, _VOCABULARY = "post_layernorm", "word_embed_proj_dim", "vocab_size"
_SAME = (*_SIZES, *_RATES, _POST, _WIDTH)
_AGAIN = "write the checkpoint with this program's models"


@dataclass(frozen=True)
class NemoContext:
    """What a NeMo checkpoint says of its model."""

    shape: ModelConfig
    vocab_size: int | None  # without padding; None: its tokenizer's
    tokenizer: str | None  # its folder in the checkpoint, or its hub id where NeMo kept only that


def read_context(folder: Path) -> NemoContext:
    """The context of a NeMo checkpoint.

    Raises:
        CheckpointError: it is no NeMo checkpoint, or one of another architecture; names the settings that are
            missing, or are nothing that our model computes with.
    """
    path = folder / CONTEXT / MODEL_YAML
    content = _read(folder, path)
    config = content["config"]
    if missing := [key for key in _SAME if key not in config]:
        raise CheckpointError(f"{path} has no {', '.join(missing)}; {_AGAIN}.")
    name = _tokenizer_name(content.get("tokenizer"))
    if problems := [*_problems(config), *_name_problems(name)]:
        raise CheckpointError(f"{path}: {'; '.join(problems)}; {_AGAIN}.")
    fields = {key: config[key] for key in _SAME}
    shape = ModelConfig(architecture=MODELS[_target(content)], activation=_activation(config), **fields)
    if problems := shape_problems(shape):
        raise CheckpointError(f"{path}: {'; '.join(problems)}; {_AGAIN}.")
    place = name["attr"] if isinstance(name, Mapping) else name and str(path.parent / name)
    return NemoContext(shape, config.get(_VOCABULARY), place)


def _read(folder: Path, path: Path) -> Mapping[str, Any]:
    if not path.is_file() or not (folder / WEIGHTS).is_dir():
        raise CheckpointError(
            f"{folder} is no NeMo checkpoint; give a folder with {WEIGHTS}/ and {CONTEXT}/{MODEL_YAML}."
        )
    try:
        content = yaml.safe_load(path.read_bytes())
    # Dates that there are none of, and lists within lists without end, are no errors of its own.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = first_line(error)
        raise CheckpointError(f"{path} cannot be read ({reason}); write the checkpoint again.") from error
    known = " or ".join(name.rpartition(".")[2] for name in MODELS)
    if _target(content) not in MODELS:
        raise CheckpointError(f"{folder} holds a model of class {_target(content)!r}; give an {known}.")
    if not isinstance(content.get("config"), Mapping):
        raise CheckpointError(f"{path} has no config; write the checkpoint again.")
    return dict(content)


def _problems(config: Mapping[str, Any]) -> list[str]:
    """What is nothing that our model computes with."""
    problems = size_problems(config, _SIZES) + rate_problems(config, _RATES)
    problems += [
        f"{key}={config.get(key)!r} is neither null nor a positive whole number"
        for key in (_WIDTH, _VOCABULARY)
        if config.get(key) is not None and not is_size(config[key])
    ]
    if not isinstance(config[_POST], bool):
        problems.append(f"{_POST}={config[_POST]!r} is neither true nor false")
    if _activation(config) not in ACTIVATIONS:
        problems.append(f"activation_func={_activation(config)!r} is not one of {sorted(ACTIVATIONS)}")
    return problems


def _activation(config: Mapping[str, Any]) -> str:
    return _target(config.get("activation_func")).rpartition(".")[2]


def _tokenizer_name(tokenizer: Any) -> Any:
    """What NeMo calls the tokenizer: a folder beside the file, or {"attr": hub id}; None: it has none."""
    return tokenizer.get("pretrained_model_name") if isinstance(tokenizer, Mapping) else None


def _name_problems(name: Any) -> list[str]:
    given = name.get("attr") if isinstance(name, Mapping) else name
    is_name = name is None or (isinstance(given, str) and given)
    return [] if is_name else [f"pretrained_model_name={name!r} is no tokenizer"]


def _target(value: Any) -> str:
    """The class or function that a value of the file stands for; "" for anything else."""
    return str(value.get("_target_", "")) if isinstance(value, Mapping) else ""
