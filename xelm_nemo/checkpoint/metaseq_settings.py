"""Settings of metaseq's and fairseq's models: those of Hugging Face's config.json for each."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from xelm_nemo.checkpoint import opt, xglm
from xelm_nemo.checkpoint.metaseq_files import MetaseqFile
from xelm_nemo.checkpoint.metaseq_names import TOKENS
from xelm_nemo.checkpoint.settings import size_problems
from xelm_nemo.errors import CheckpointError
from xelm_nemo.model.config import ACTIVATIONS, ModelConfig

_SETTINGS = {"xglm": xglm.SETTINGS, "opt": opt.SETTINGS}
# Their names of sizes -> ours.
_SIZES = {
    "decoder_layers": "num_layers",
    "decoder_embed_dim": "hidden_size",
    "decoder_ffn_embed_dim": "ffn_hidden_size",
    "decoder_attention_heads": "num_attention_heads",
    "max_target_positions": "max_position_embeddings",
}
_SAME_NAME = ("dropout", "attention_dropout")
# Settings with the only value that our model computes with; a checkpoint without one means the same.
_FIXED = {
    "share_decoder_input_output_embed": True,
    "no_token_positional_embeddings": False,
    "decoder_learned_sinusoidal": False,
    "decoder_layerdrop": 0.0,
    "activation_dropout": 0.0,
    "relu_dropout": 0.0,
    "no_decoder_final_norm": False,
    "layernorm_embedding": False,
    "adaptive_input": False,
    "character_embeddings": False,
    "alibi": False,
    "disable_bias": False,
    "disable_affine_ln": False,
    "scale_attn": False,
    "scale_fc": False,
    "scale_heads": False,
    "scale_resids": False,
    "moe_freq": 0,
    "base_layers": 0,
}
_FINAL_NORM = "decoder.layer_norm.weight"
_NORM_BEFORE, _UNSCALED, _LEARNED = "decoder_normalize_before", "no_scale_embedding", "decoder_learned_pos"
_WIDTHS = ("decoder_input_dim", "decoder_output_dim")
_READ = (*_SIZES, *_SAME_NAME, *_FIXED, _NORM_BEFORE, _UNSCALED, _LEARNED, *_WIDTHS, "activation_fn")


def hf_config(part: MetaseqFile, num_parts: int) -> dict[str, Any]:
    """The config.json that Hugging Face would give a checkpoint, from its first part.

    Raises:
        CheckpointError: all settings that are missing, or that our model cannot compute with.
    """
    # Newer versions of metaseq have no such setting, and a final norm where fairseq has one.
    values = checked(part, {_NORM_BEFORE: _FINAL_NORM in part.tensors})
    architecture = architecture_of(values)
    hf_size = {ours: theirs for theirs, ours in _SETTINGS[architecture].sizes.items()}
    config = {hf_size[ours]: values[key] for key, ours in _SIZES.items()}
    config |= {key: values[key] for key in _SAME_NAME if key in values}
    config |= {"model_type": architecture, "activation_function": values["activation_fn"]}
    config["vocab_size"] = _num_rows(part) * num_parts
    if architecture == "opt":
        config |= {"do_layer_norm_before": values[_NORM_BEFORE], "word_embed_proj_dim": values[_WIDTHS[0]]}
    return config


def checked(part: MetaseqFile, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a part, with what fairseq takes for those that are left out.

    Args:
        part: a file of it.
        defaults: further ones.

    Raises:
        CheckpointError: all settings that are missing, or that our model cannot compute with.
    """
    values = _with_defaults(part.settings, defaults)
    tensors = [f"{key} is a tensor" for key in _READ if isinstance(values.get(key), Tensor)]
    if problems := tensors or _problems(values):
        raise CheckpointError(f"{part.path}: {'; '.join(problems)}. Use a checkpoint without these settings.")
    return values


def architecture_of(values: Mapping[str, Any]) -> str:
    """What the settings describe."""
    return "opt" if values[_LEARNED] else "xglm"


def metaseq_settings(shape: ModelConfig) -> dict[str, Any]:
    """The settings under which metaseq and fairseq build a model of this shape."""
    is_opt = shape.architecture == "opt"
    return {
        **{key: getattr(shape, field) for key, field in _SIZES.items()},
        **_FIXED,
        "activation_fn": shape.activation,
        "dropout": shape.hidden_dropout,
        "attention_dropout": shape.attention_dropout,
        _NORM_BEFORE: not shape.post_layernorm,
        _UNSCALED: is_opt,
        _LEARNED: is_opt,
        **dict.fromkeys(_WIDTHS, shape.word_embed_proj_dim or shape.hidden_size),
    }


def _with_defaults(settings: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    values = {key: value for key, value in settings.items() if value is not None}
    width = values.get("decoder_embed_dim")
    defaults = {
        **more,
        "activation_fn": "relu",
        "max_target_positions": values.get("tokens_per_sample"),
        _UNSCALED: False,
        _LEARNED: False,
        **dict.fromkeys(_WIDTHS, width),
    }
    return defaults | values


def _problems(values: Mapping[str, Any]) -> list[str]:
    """What is missing from the settings, or is nothing that our model computes with."""
    architecture = architecture_of(values)
    wanted: dict[str, Any] = {**_FIXED, _UNSCALED: architecture == "opt"}
    if architecture == "xglm":
        wanted |= {_NORM_BEFORE: True, **dict.fromkeys(_WIDTHS, values.get("decoder_embed_dim"))}
    problems = [
        f"{key}={values[key]!r} is not supported, only {value!r}"
        for key, value in wanted.items()
        if values.get(key, value) != value
    ]
    problems += size_problems(values, _SIZES)
    narrow, last = (values[key] for key in _WIDTHS)
    if narrow != last:
        problems.append(f"{_WIDTHS[0]}={narrow!r} and {_WIDTHS[1]}={last!r} are not one width")
    if values["activation_fn"] not in ACTIVATIONS:
        problems.append(f"activation_fn={values['activation_fn']!r} is not one of {sorted(ACTIVATIONS)}")
    return problems


def _num_rows(part: MetaseqFile) -> int:
    """How many tokens a part has embeddings for."""
    table = part.tensors.get(TOKENS)
    if table is None or len(table.shape) != 2:
        raise CheckpointError(f"{part.path} has no table {TOKENS}; give a checkpoint of a language model.")
    return table.shape[0]
