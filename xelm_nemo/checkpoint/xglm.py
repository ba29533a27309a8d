"""XGLM as Hugging Face writes it: names of weights, and config.json."""

from collections.abc import Mapping
from typing import Any

from xelm_nemo.checkpoint.mapping import Copy, FusedQkv, PaddedRows, Recomputed, Rule, Tied, WeightMap
from xelm_nemo.checkpoint.store import DTYPES, ModelFacts
from xelm_nemo.errors import CheckpointError
from xelm_nemo.model.config import ModelConfig
from xelm_nemo.model.gpt import ACTIVATIONS
from xelm_nemo.model.positions import POSITION_OFFSET

LAYERNORM_EPSILON = 1e-5  # no setting in Hugging Face's XGLM
_PAD_TOKEN_ID = 1

# config.json key -> field of ModelConfig
_SIZES = {
    "num_layers": "num_layers",
    "d_model": "hidden_size",
    "ffn_dim": "ffn_hidden_size",
    "attention_heads": "num_attention_heads",
    "max_position_embeddings": "max_position_embeddings",
}
_RATES = {
    "dropout": "hidden_dropout",
    "attention_dropout": "attention_dropout",
    "init_std": "init_method_std",
}
# The only values that our model computes with; a configuration without the key means the same.
_FIXED = {
    "scale_embedding": True,
    "tie_word_embeddings": True,
    "activation_dropout": 0.0,
    "layerdrop": 0.0,
    "add_cross_attention": False,
}

_LAYER, _HF_LAYER = "decoder.layers.*.", "model.layers.*."
_IN_EVERY_LAYER = {
    "self_attention.linear_qkv.layer_norm_": "self_attn_layer_norm.",
    "self_attention.linear_proj.": "self_attn.out_proj.",
    "mlp.linear_fc1.layer_norm_": "final_layer_norm.",
    "mlp.linear_fc1.": "fc1.",
    "mlp.linear_fc2.": "fc2.",
}
_EMBEDDING = "model.embed_tokens.weight"


def weight_map(shape: ModelConfig, vocab_size: int) -> WeightMap:
    """Which Hugging Face tensors an XGLM of this shape is made of; `vocab_size` without padding."""
    rules: list[Rule] = [PaddedRows("embedding.word_embeddings.weight", _EMBEDDING, vocab_size)]
    for kind in ("weight", "bias"):
        query, key, value = (f"{_HF_LAYER}self_attn.{name}_proj.{kind}" for name in "qkv")
        fused = f"{_LAYER}self_attention.linear_qkv.{kind}"
        rules += [
            FusedQkv(fused, query, key, value, shape.num_attention_heads),
            *(Copy(_LAYER + ours + kind, _HF_LAYER + hf + kind) for ours, hf in _IN_EVERY_LAYER.items()),
            Copy(f"decoder.final_layernorm.{kind}", f"model.layer_norm.{kind}"),
        ]
    optional: list[Tied | Recomputed] = [
        Tied("lm_head.weight", _EMBEDDING),
        Recomputed("model.embed_positions.weights"),
    ]
    return WeightMap(rules, num_layers=shape.num_layers, optional=optional)


def shape_from_hf(config: Any, source: str = "config.json") -> ModelConfig:
    """The shape that a config.json describes.

    Args:
        config: the value in config.json, a dictionary.
        source: what errors call the file.

    Raises:
        CheckpointError: all settings that are missing, or that our model cannot compute with.
    """
    if not isinstance(config, Mapping):
        raise CheckpointError(f"{source} holds no settings; give the config.json of an XGLM checkpoint.")
    if problems := [*_kind_problems(config), *_value_problems(config)]:
        raise CheckpointError(f"{source}: {'; '.join(problems)}. Use an XGLM checkpoint with these settings.")
    values: dict[str, Any] = {field: config[key] for key, field in _SIZES.items()}
    values |= {field: float(config[key]) for key, field in _RATES.items() if key in config}
    activation = config.get("activation_function", "gelu")
    return ModelConfig(activation=activation, layernorm_epsilon=LAYERNORM_EPSILON, **values)


def hf_config(facts: ModelFacts) -> dict[str, Any]:
    """The config.json of a model.

    Raises:
        CheckpointError: the model has a setting that Hugging Face's XGLM cannot express.
    """
    shape = facts.shape
    if shape.layernorm_epsilon != LAYERNORM_EPSILON:
        raise CheckpointError(
            f"model.layernorm_epsilon={shape.layernorm_epsilon} cannot be exported: Hugging Face's XGLM "
            f"always computes with {LAYERNORM_EPSILON}."
        )
    return {
        "architectures": ["XGLMForCausalLM"],
        "model_type": "xglm",
        "vocab_size": facts.vocab_size,
        **{key: getattr(shape, field) for key, field in (_SIZES | _RATES).items()},
        "activation_function": shape.activation,
        **_FIXED,
        "bos_token_id": 0,
        "pad_token_id": _PAD_TOKEN_ID,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
        "use_cache": True,
        "torch_dtype": str(DTYPES[facts.dtype]).removeprefix("torch."),
    }


def _kind_problems(config: Mapping[str, Any]) -> list[str]:
    """What makes the model another one than an XGLM that our model can compute."""
    problems = []
    if config.get("model_type") != "xglm":
        problems.append(f"model_type={config.get('model_type')!r} is not 'xglm'")
    for key, value in _FIXED.items():
        if config.get(key, value) != value:
            problems.append(f"{key}={config[key]!r} is not supported, only {value!r}")
    activation = config.get("activation_function", "gelu")
    if activation not in ACTIVATIONS:
        problems.append(f"activation_function={activation!r} is not one of {sorted(ACTIVATIONS)}")
    pad = config.get("pad_token_id")
    if pad not in (None, *range(POSITION_OFFSET)):
        # Hugging Face zeroes the row of the position table that has the padding token's number.
        problems.append(f"pad_token_id={pad!r} blanks a position that text uses; only 0 and 1 do not")
    return problems


def _value_problems(config: Mapping[str, Any]) -> list[str]:
    """Sizes and rates that are missing or no numbers."""
    problems = []
    for key in ("vocab_size", *_SIZES):
        value = config.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            problems.append(f"{key}={value!r} is not a positive whole number")
        elif key == "d_model" and value % 2:
            problems.append(f"d_model={value!r} is odd and has no sines and cosines in equal number")
    for key in _RATES:
        value = config.get(key, 0.0)
        if not isinstance(value, int | float) or not 0 <= value < 1:
            problems.append(f"{key}={value!r} is not a number from 0 to below 1")
    return problems
