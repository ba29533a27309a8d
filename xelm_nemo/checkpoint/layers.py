"""The layers of XGLM and OPT, whose weights have the same names in both."""

from collections.abc import Mapping

from xelm_nemo.checkpoint.mapping import Copy, FusedQkv, Rule

_LAYER = "decoder.layers.*."
# Ours -> Hugging Face's, within a layer.
_LINEAR = {
    "self_attention.linear_proj.": "self_attn.out_proj.",
    "mlp.linear_fc1.": "fc1.",
    "mlp.linear_fc2.": "fc2.",
}
PRE_NORMS = {
    "self_attention.linear_qkv.layer_norm_": "self_attn_layer_norm.",
    "mlp.linear_fc1.layer_norm_": "final_layer_norm.",
}
POST_NORMS = {
    "post_att_layernorm.": "self_attn_layer_norm.",
    "post_mlp_layernorm.": "final_layer_norm.",
}


def layer_rules(hf_layer: str, norms: Mapping[str, str], num_heads: int) -> list[Rule]:
    """The rules of every layer.

    Args:
        hf_layer: what Hugging Face's names of a layer's weights begin with, `*` for its number.
        norms: `PRE_NORMS` or `POST_NORMS`, as they come before or after attention and feed-forward.
        num_heads: attention heads.
    """
    rules: list[Rule] = []
    for kind in ("weight", "bias"):
        query, key, value = (f"{hf_layer}self_attn.{name}_proj.{kind}" for name in "qkv")
        fused = f"{_LAYER}self_attention.linear_qkv.{kind}"
        rules.append(FusedQkv(fused, query, key, value, num_heads))
        names = {**_LINEAR, **norms}
        rules += [Copy(_LAYER + ours + kind, hf_layer + hf + kind) for ours, hf in names.items()]
    return rules
