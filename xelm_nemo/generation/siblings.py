"""Exported models as parts of one mixture: opened one by one, of one vocabulary and one shape."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import AutoModelForCausalLM

from xelm_nemo.errors import ArtifactError, ConfigError, first_line
from xelm_nemo.files import read_json

# What a set's own config.json takes from its experts', which agree in it.
SHARED = ("vocab_size", "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")
# XGLM's names of the sizes and OPT's; a model has nothing under the other's.
_SHAPE = (
    *("model_type", "num_layers", "d_model", "attention_heads", "ffn_dim", "activation_function"),
    *("num_hidden_layers", "hidden_size", "num_attention_heads", "word_embed_proj_dim"),
    *("scale_embedding", "do_layer_norm_before"),
)


def shared_settings(experts: Sequence[Path]) -> dict[str, Any]:
    """What every expert's config.json says under the keys of `SHARED`.

    Args:
        experts: Hugging Face folders.

    Raises:
        ConfigError: names two experts and everything in which they differ.
        ArtifactError: a config.json is missing or not JSON.
    """
    found = [read_json(expert / "config.json") for expert in experts]
    for expert, settings in zip(experts, found, strict=True):
        if differing := [key for key in (*SHARED, *_SHAPE) if settings.get(key) != found[0].get(key)]:
            raise ConfigError(
                f"{experts[0]} and {expert} differ in {', '.join(differing)}; "
                "give experts branched from one seed model."
            )
    return {key: found[0].get(key) for key in SHARED}


def open_expert(folder: Path, **kwargs: Any) -> Any:
    """The model of a Hugging Face folder.

    Args:
        folder: the expert's.
        **kwargs: what its own `from_pretrained` takes.

    Raises:
        ArtifactError: the weights are missing, damaged, or of another shape than its config.json says.
    """
    read_json(folder / "config.json")
    try:
        return AutoModelForCausalLM.from_pretrained(folder, **kwargs | {"trust_remote_code": False})
    except (OSError, SafetensorError, RuntimeError) as error:
        if "allocate" in str(error):  # CUDA's and the CPU's: the folder is not to blame
            raise
        raise ArtifactError(
            f"{folder} holds no model that can be read ({first_line(error)}); export it again."
        ) from error
