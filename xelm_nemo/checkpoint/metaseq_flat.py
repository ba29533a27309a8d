"""What is in the flat tensors of OPT's published parts, whose files do not say it.

metaseq's resharding leaves `shard_metadata` out, and OPT was published so. FSDP flattens the parameters of a
module in the order in which it has them, and of a tensor-parallel part all shapes follow from the
settings, but for the rows of the embeddings: those are what is left of the flat tensor that they are in.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from xelm_nemo.checkpoint.metaseq_files import MetaseqFile
from xelm_nemo.checkpoint.metaseq_names import TOKENS
from xelm_nemo.checkpoint.metaseq_settings import architecture_of, checked
from xelm_nemo.checkpoint.metaseq_shards import FLAT, Flat, Layout
from xelm_nemo.errors import CheckpointError

_ROOT = f"{FLAT}_0"
_POSITION_OFFSET = 2  # rows of the table that no position has
_Tensor = tuple[str, tuple[int, ...]]  # name, shape


def published_layout(part: MetaseqFile, num_parts: int) -> Layout:
    """What the flat tensors of one part were made of.

    Args:
        part: the one file that it is.
        num_parts: how many parts the model has.

    Raises:
        CheckpointError: settings that our model cannot compute with, or with which it was never published in
            parts; no embeddings, or no whole number of rows of them.
    """
    # The only settings of OPT's parts: 350M, with the others, is no model in parts.
    values = checked(part, {"decoder_normalize_before": True})
    width = values["decoder_embed_dim"]
    if not values["decoder_normalize_before"] or values["decoder_input_dim"] != width:
        raise CheckpointError(
            f"{part.path} has flattened tensors and no shard_metadata, and norms behind the layers or narrow "
            "embeddings; give the shards that training wrote."
        )
    layers: list[Flat] = []
    root: list[_Tensor] = []
    for number in range(values["decoder_layers"]):
        prefix = f"decoder.layers.{number}."
        shapes = _layer(prefix, values, num_parts)
        # Training flattens small layers with the rest, and large ones each by itself.
        if f"{prefix}{_ROOT}" in part.tensors:
            layers.append(Flat(f"{prefix}{_ROOT}", shapes))
        else:
            root += shapes
    if architecture_of(values) == "opt":
        rows = values["max_target_positions"] + _POSITION_OFFSET
        root.insert(0, ("decoder.embed_positions.weight", (rows, width)))
    root += _pair("decoder.layer_norm", (width,))
    return Layout((Flat(_ROOT, (_embeddings(part, root, width), *root)), *layers))


def _embeddings(part: MetaseqFile, others: Iterable[_Tensor], width: int) -> _Tensor:
    """The part's rows of the embeddings, of which no setting tells: what the others leave."""
    if _ROOT not in part.tensors:
        raise CheckpointError(f"{part.path} has no {_ROOT}, with the embeddings; fetch the checkpoint again.")
    left = math.prod(part.tensors[_ROOT].shape) - sum(math.prod(shape) for _, shape in others)
    if left <= 0 or left % width:
        raise CheckpointError(
            f"{part.path}: {_ROOT} has {left} numbers more than the settings describe, which are no "
            f"embeddings of {width}; use the settings and weights of one checkpoint."
        )
    return TOKENS, (left // width, width)


def _layer(root: str, values: Mapping[str, Any], num_parts: int) -> tuple[_Tensor, ...]:
    width, ffn = values["decoder_embed_dim"], values["decoder_ffn_embed_dim"] // num_parts
    own = width // num_parts
    return (
        (f"{root}self_attn.qkv_proj.weight", (3 * own, width)),
        (f"{root}self_attn.qkv_proj.bias", (3 * own,)),
        (f"{root}self_attn.out_proj.weight", (width, own)),
        (f"{root}self_attn.out_proj.bias", (width,)),
        *_pair(f"{root}self_attn_layer_norm", (width,)),
        (f"{root}fc1.weight", (ffn, width)),
        (f"{root}fc1.bias", (ffn,)),
        (f"{root}fc2.weight", (width, ffn)),
        (f"{root}fc2.bias", (width,)),
        *_pair(f"{root}final_layer_norm", (width,)),
    )


def _pair(name: str, shape: tuple[int, ...]) -> tuple[_Tensor, ...]:
    return ((f"{name}.weight", shape), (f"{name}.bias", shape))
