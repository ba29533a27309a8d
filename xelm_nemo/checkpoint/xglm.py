"""XGLM as Hugging Face writes it: names of weights, and config.json."""

from collections.abc import Mapping
from typing import Any

from xelm_nemo.checkpoint.facts import ModelFacts
from xelm_nemo.checkpoint.layers import EMBEDDING, PRE_NORMS, layer_rules
from xelm_nemo.checkpoint.mapping import WeightMap
from xelm_nemo.checkpoint.rules import Copy, PaddedRows, Recomputed, Rule, Tied
from xelm_nemo.checkpoint.settings import SettingsMap
from xelm_nemo.model.config import ModelConfig, padded_vocab_size
from xelm_nemo.model.positions import POSITION_OFFSET

SETTINGS = SettingsMap(
    model_type="xglm",
    model_class="XGLMForCausalLM",
    sizes={
        "num_layers": "num_layers",
        "d_model": "hidden_size",
        "ffn_dim": "ffn_hidden_size",
        "attention_heads": "num_attention_heads",
        "max_position_embeddings": "max_position_embeddings",
    },
    rates={
        "dropout": "hidden_dropout",
        "attention_dropout": "attention_dropout",
        "init_std": "init_method_std",
    },
    activation="gelu",
    fixed={
        "scale_embedding": True,
        "tie_word_embeddings": True,
        "activation_dropout": 0.0,
        "layerdrop": 0.0,
        "add_cross_attention": False,
    },
    token_ids={"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2},
)
_EMBEDDING = "model.embed_tokens.weight"


def weight_map(shape: ModelConfig, vocab_size: int) -> WeightMap:
    """Which Hugging Face tensors an XGLM of this shape is made of; `vocab_size` without padding."""
    hidden = shape.hidden_size
    rules: list[Rule] = [
        PaddedRows(EMBEDDING, _EMBEDDING, (vocab_size, hidden), padded_vocab_size(vocab_size)),
        *layer_rules("model.layers.*.", PRE_NORMS, shape),
        *(
            Copy(f"decoder.final_layernorm.{kind}", f"model.layer_norm.{kind}", (hidden,))
            for kind in ("weight", "bias")
        ),
    ]
    optional: list[Tied | Recomputed] = [
        Tied("lm_head.weight", _EMBEDDING),
        Recomputed("model.embed_positions.weights"),
    ]
    return WeightMap(rules, num_layers=shape.num_layers, optional=optional)


def config_problems(config: Mapping[str, Any]) -> list[str]:
    """Why no model of ours computes what a config.json describes; nothing when one does."""
    problems = SETTINGS.problems(config)
    pad, width = config.get("pad_token_id"), config.get("d_model")
    if pad not in (None, *range(POSITION_OFFSET)):
        # Hugging Face zeroes the row of the position table that has the padding token's number.
        problems.append(f"pad_token_id={pad!r} blanks a position that text uses; only 0 and 1 do not")
    if isinstance(width, int) and width % 2:
        problems.append(f"d_model={width!r} is odd and has no sines and cosines in equal number")
    return problems


def read_config(config: Mapping[str, Any]) -> ModelConfig:
    """The shape that a config.json without problems describes."""
    return ModelConfig(**SETTINGS.read(config))


def write_config(facts: ModelFacts) -> dict[str, Any]:
    """The config.json of a model.

    Raises:
        CheckpointError: the model has a setting that Hugging Face's XGLM cannot express.
    """
    return SETTINGS.write(facts)
