"""OPT as Hugging Face writes it: names of weights, and config.json."""

from collections.abc import Mapping
from typing import Any

from xelm_nemo.checkpoint.facts import ModelFacts
from xelm_nemo.checkpoint.layers import EMBEDDING, POST_NORMS, PRE_NORMS, layer_rules
from xelm_nemo.checkpoint.mapping import WeightMap
from xelm_nemo.checkpoint.rules import Copy, PaddedRows, Rule, Tied
from xelm_nemo.checkpoint.settings import SettingsMap, is_size
from xelm_nemo.model.config import ModelConfig, padded_vocab_size
from xelm_nemo.model.positions import POSITION_OFFSET

SETTINGS = SettingsMap(
    model_type="opt",
    model_class="OPTForCausalLM",
    sizes={
        "num_hidden_layers": "num_layers",
        "hidden_size": "hidden_size",
        "ffn_dim": "ffn_hidden_size",
        "num_attention_heads": "num_attention_heads",
        "max_position_embeddings": "max_position_embeddings",
    },
    rates={
        "dropout": "hidden_dropout",
        "attention_dropout": "attention_dropout",
        "init_std": "init_method_std",
    },
    activation="relu",
    fixed={
        "enable_bias": True,
        "layer_norm_elementwise_affine": True,
        "tie_word_embeddings": True,
        "activation_dropout": 0.0,
        "layerdrop": 0.0,
        "_remove_final_layer_norm": False,  # true in models fine-tuned with transformers before 4.20.1
    },
    token_ids={"bos_token_id": 2, "pad_token_id": 1, "eos_token_id": 2},
)
_NORM_BEFORE, _EMBEDDING_WIDTH = "do_layer_norm_before", "word_embed_proj_dim"
_EMBEDDING = "model.decoder.embed_tokens.weight"


def weight_map(shape: ModelConfig, vocab_size: int) -> WeightMap:
    """Which Hugging Face tensors an OPT of this shape is made of; `vocab_size` without padding."""
    norms, hidden = POST_NORMS if shape.post_layernorm else PRE_NORMS, shape.hidden_size
    width = shape.word_embed_proj_dim or hidden
    positions = (shape.max_position_embeddings + POSITION_OFFSET, hidden)
    rules: list[Rule] = [
        PaddedRows(EMBEDDING, _EMBEDDING, (vocab_size, width), padded_vocab_size(vocab_size)),
        Copy("embedding.position_embeddings.weight", "model.decoder.embed_positions.weight", positions),
        *layer_rules("model.decoder.layers.*.", norms, shape),
    ]
    if shape.word_embed_proj_dim is not None:
        projections = {"project_in": (hidden, width), "project_out": (width, hidden)}
        rules += [
            Copy(f"{name}.weight", f"model.decoder.{name}.weight", sizes)
            for name, sizes in projections.items()
        ]
    if not shape.post_layernorm:
        ours, theirs = "decoder.final_layernorm.", "model.decoder.final_layer_norm."
        rules += [Copy(ours + kind, theirs + kind, (hidden,)) for kind in ("weight", "bias")]
    return WeightMap(rules, num_layers=shape.num_layers, optional=[Tied("lm_head.weight", _EMBEDDING)])


def config_problems(config: Mapping[str, Any]) -> list[str]:
    """Why no model of ours computes what a config.json describes; nothing when one does."""
    problems = SETTINGS.problems(config)
    before, width = config.get(_NORM_BEFORE, True), config.get(_EMBEDDING_WIDTH)
    if not isinstance(before, bool):
        problems.append(f"{_NORM_BEFORE}={before!r} is neither true nor false")
    if width is not None and not is_size(width):
        problems.append(f"{_EMBEDDING_WIDTH}={width!r} is not a positive whole number")
    return problems


def read_config(config: Mapping[str, Any]) -> ModelConfig:
    """The shape that a config.json without problems describes."""
    width = config.get(_EMBEDDING_WIDTH)
    return ModelConfig(
        post_layernorm=not config.get(_NORM_BEFORE, True),
        word_embed_proj_dim=None if width == config["hidden_size"] else width,
        **SETTINGS.read(config),
    )


def write_config(facts: ModelFacts) -> dict[str, Any]:
    """The config.json of a model.

    Raises:
        CheckpointError: the model has a setting that Hugging Face's OPT cannot express.
    """
    shape = facts.shape
    return SETTINGS.write(facts) | {
        _NORM_BEFORE: not shape.post_layernorm,
        _EMBEDDING_WIDTH: shape.word_embed_proj_dim or shape.hidden_size,
    }
