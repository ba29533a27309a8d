"""What NeMo 2 says of the model in a checkpoint folder, read without NeMo from `context/model.yaml`.

The other files of `context/` may hold pickles; none of them is opened.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from xelm_nemo.checkpoint.facts import WEIGHTS
from xelm_nemo.errors import CheckpointError
from xelm_nemo.model.config import ACTIVATIONS, ModelConfig, shape_problems

CONTEXT, MODEL_YAML = "context", "model.yaml"
# What `context/model.yaml` calls the models of xelm_nemo.nemo -> model.architecture.
MODELS = {"xelm_nemo.nemo.models.XGLMModel": "xglm", "xelm_nemo.nemo.models.OPTModel": "opt"}
# Fields that the configurations of these models have under the same name.
_SAME = (
    *("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "max_position_embeddings"),
    *("layernorm_epsilon", "init_method_std", "hidden_dropout", "attention_dropout"),
    *("post_layernorm", "word_embed_proj_dim"),
)


def read_nemo_shape(folder: Path) -> ModelConfig:
    """The shape of the model in a NeMo checkpoint.

    Raises:
        CheckpointError: it is no NeMo checkpoint, one of another architecture, or lacks settings.
    """
    content, path = _read(folder), folder / CONTEXT / MODEL_YAML
    config = content["config"]
    activation = _target(config.get("activation_func")).rpartition(".")[2]
    missing = [key for key in _SAME if key not in config]
    if missing or activation not in ACTIVATIONS:
        wrong = f"no {', '.join(missing)}" if missing else f"activation_func={activation!r}"
        raise CheckpointError(f"{path} has {wrong}; write the checkpoint with this program's models.")
    fields = {key: config[key] for key in _SAME}
    shape = ModelConfig(architecture=MODELS[_target(content)], activation=activation, **fields)
    if problems := shape_problems(shape):
        raise CheckpointError(f"{path}: {'; '.join(problems)}.")
    return shape


def read_vocab_size(folder: Path) -> int | None:
    """The vocabulary without padding that the model was configured with; None: its tokenizer's."""
    size: int | None = _read(folder)["config"].get("vocab_size")
    return size


def tokenizer_place(folder: Path) -> str | None:
    """The folder of the tokenizer in a NeMo checkpoint, or its hub id where NeMo kept only that."""
    tokenizer = _read(folder).get("tokenizer")
    name = tokenizer.get("pretrained_model_name") if isinstance(tokenizer, Mapping) else None
    if isinstance(name, Mapping):  # a name that was no folder when NeMo wrote it
        return str(name["attr"])
    return None if name is None else str(folder / CONTEXT / name)


def _read(folder: Path) -> Mapping[str, Any]:
    path = folder / CONTEXT / MODEL_YAML
    if not path.is_file() or not (folder / WEIGHTS).is_dir():
        raise CheckpointError(
            f"{folder} is no NeMo checkpoint; give a folder with {WEIGHTS}/ and {CONTEXT}/{MODEL_YAML}."
        )
    try:
        content = yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path} cannot be read ({reason}); write the checkpoint again.") from error
    known = " or ".join(name.rpartition(".")[2] for name in MODELS)
    if _target(content) not in MODELS:
        raise CheckpointError(f"{folder} holds a model of class {_target(content)!r}; give an {known}.")
    if not isinstance(content.get("config"), Mapping):
        raise CheckpointError(f"{path} has no config; write the checkpoint again.")
    return dict(content)


def _target(value: Any) -> str:
    """The class or function that a value of the file stands for; "" for anything else."""
    return str(value.get("_target_", "")) if isinstance(value, Mapping) else ""
