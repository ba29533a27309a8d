"""NeMo 2's checkpoint folders in, without NeMo: `weights/` is Megatron's, `context/model.yaml` says of what.

The other files of `context/` may hold pickles; none of them is opened.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from xelm_nemo import parallel
from xelm_nemo.artifacts import Recipe
from xelm_nemo.checkpoint import store
from xelm_nemo.checkpoint.facts import ModelFacts
from xelm_nemo.checkpoint.weights import HfWeights, check_finite
from xelm_nemo.corpus.tokenizer import load_tokenizer
from xelm_nemo.errors import CheckpointError
from xelm_nemo.model.config import ACTIVATIONS, ModelConfig, ParallelConfig, shape_problems
from xelm_nemo.model.gpt import build_model

CONTEXT, MODEL_YAML = "context", "model.yaml"
# What `context/model.yaml` calls the models of xelm_nemo.nemo -> model.architecture.
MODELS = {"xelm_nemo.nemo.models.XGLMModel": "xglm", "xelm_nemo.nemo.models.OPTModel": "opt"}
# Fields that the configurations of NeMo's models have under the same name.
_SAME = (
    *("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "max_position_embeddings"),
    *("layernorm_epsilon", "init_method_std", "hidden_dropout", "attention_dropout"),
    *("post_layernorm", "word_embed_proj_dim"),
)


def import_nemo(source: Path, output: Path, recipe: Recipe, *, tokenizer: str | None = None) -> None:
    """Write a NeMo checkpoint of an XGLM or OPT as a model folder, at whatever layout NeMo saved it.

    Args:
        source: a folder with `weights/` and `context/`. What a training run saved beside the weights, such
            as the optimizer's state, is left there.
        output: the model folder to write.
        recipe: what the model folder's manifest says that it was made from.
        tokenizer: the folder or hub id of its tokenizer; None: the one in the context.

    Raises:
        CheckpointError: it is no NeMo checkpoint, or one of another architecture; weights are missing, of
            another shape, or hold a number that is not finite. No output is left behind.
    """
    facts = read_facts(source, tokenizer=tokenizer)
    with parallel.model_parallel(alone=True):
        model = build_model(
            facts.shape, ParallelConfig(), vocab_size=facts.vocab_size, dtype=store.DTYPES[facts.dtype]
        )
        store.load_weights(model, source)
        state = {name: value for name, value in model.state_dict().items() if value is not None}
        check_finite(HfWeights(state, dict.fromkeys(state, source / store.WEIGHTS)))
        store.save_model(output, model, facts, recipe)


def read_facts(folder: Path, *, tokenizer: str | None = None) -> ModelFacts:
    """What a NeMo checkpoint says of its model.

    Args:
        folder: the checkpoint.
        tokenizer: the folder or hub id of its tokenizer; None: the one in the context.

    Raises:
        CheckpointError: as `read_nemo_shape`; there is no tokenizer.
        ArtifactError: the tokenizer cannot be read.
    """
    config = _config(folder)
    words = tokenizer or tokenizer_folder(folder)
    if words is None:
        raise CheckpointError(
            f"{folder} brings no tokenizer; set tokenizer.path to the one that the model was trained with."
        )
    vocab_size = config.get("vocab_size") or len(load_tokenizer(words))
    return ModelFacts(
        read_nemo_shape(folder),
        vocab_size,
        store.stored_dtype(folder),
        str(words),
        parent=str(folder),
        name=folder.name,
    )


def read_nemo_shape(folder: Path) -> ModelConfig:
    """The shape of the model in a NeMo checkpoint.

    Raises:
        CheckpointError: it is no NeMo checkpoint, one of another architecture, or lacks settings.
    """
    config = _config(folder)
    activation = str(_target(config.get("activation_func"))).rpartition(".")[2]
    missing = [key for key in _SAME if key not in config]
    if missing or activation not in ACTIVATIONS:
        wrong = f"no {', '.join(missing)}" if missing else f"activation_func={activation!r}"
        raise CheckpointError(f"{folder / CONTEXT / MODEL_YAML} has {wrong}; write the checkpoint again.")
    fields = {key: config[key] for key in _SAME}
    shape = ModelConfig(architecture=MODELS[_read(folder)["_target_"]], activation=activation, **fields)
    if problems := shape_problems(shape):
        raise CheckpointError(f"{folder / CONTEXT / MODEL_YAML}: {'; '.join(problems)}.")
    return shape


def tokenizer_folder(folder: Path) -> str | None:
    """The folder of the tokenizer in a NeMo checkpoint's context; a hub id where that is all it has."""
    tokenizer = _read(folder).get("tokenizer")
    name = tokenizer.get("pretrained_model_name") if isinstance(tokenizer, Mapping) else None
    if isinstance(name, Mapping):  # a name that was no folder when NeMo wrote it
        return str(name.get("attr"))
    return None if name is None else str(folder / CONTEXT / name)


def _config(folder: Path) -> Mapping[str, Any]:
    content = _read(folder)
    target, config = content.get("_target_"), content.get("config")
    if target not in MODELS:
        known = " or ".join(name.rpartition(".")[2] for name in MODELS)
        raise CheckpointError(
            f"{folder} holds a {target}, not an {known}; give the checkpoint of one of these."
        )
    if not isinstance(config, Mapping):
        raise CheckpointError(f"{folder / CONTEXT / MODEL_YAML} has no config; write the checkpoint again.")
    return config


def _read(folder: Path) -> Mapping[str, Any]:
    path = folder / CONTEXT / MODEL_YAML
    if not path.is_file() or not (folder / store.WEIGHTS).is_dir():
        raise CheckpointError(
            f"{folder} is no NeMo checkpoint; give a folder with {store.WEIGHTS}/ and {CONTEXT}/{MODEL_YAML}."
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is no YAML ({str(error).splitlines()[0]}); write it again.") from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} describes no model; give a checkpoint that NeMo wrote.")
    return content


def _target(value: Any) -> Any:
    return value.get("_target_") if isinstance(value, Mapping) else value
