"""What XGLM and OPT have under the same names: word embeddings and layers."""

from collections.abc import Mapping

from xelm_nemo.checkpoint.rules import Copy, FusedQkv, Rule
from xelm_nemo.model.config import ModelConfig

EMBEDDING = "embedding.word_embeddings.weight"
_LAYER = "decoder.layers.*."
PRE_NORMS = {
    "self_attention.linear_qkv.layer_norm_": "self_attn_layer_norm.",
    "mlp.linear_fc1.layer_norm_": "final_layer_norm.",
}
POST_NORMS = {
    "post_att_layernorm.": "self_attn_layer_norm.",
    "post_mlp_layernorm.": "final_layer_norm.",
}


def layer_rules(hf_layer: str, norms: Mapping[str, str], shape: ModelConfig) -> list[Rule]:
    """The rules of every layer.

    Args:
        hf_layer: what Hugging Face's names of a layer's weights begin with, `*` for its number.
        norms: `PRE_NORMS` or `POST_NORMS`, as they come before or after attention and feed-forward.
        shape: the model's.
    """
    hidden, ffn = shape.hidden_size, shape.ffn_hidden_size
    # Ours -> Hugging Face's, and the shape of the weight; a bias has as many elements as that has rows.
    linear = {
        "self_attention.linear_proj.": ("self_attn.out_proj.", (hidden, hidden)),
        "mlp.linear_fc1.": ("fc1.", (ffn, hidden)),
        "mlp.linear_fc2.": ("fc2.", (hidden, ffn)),
    }
    rules: list[Rule] = []
    for kind, dims in {"weight": 2, "bias": 1}.items():
        query, key, value = (f"{hf_layer}self_attn.{name}_proj.{kind}" for name in "qkv")
        fused = f"{_LAYER}self_attention.linear_qkv.{kind}"
        rules.append(FusedQkv(fused, query, key, value, (hidden, hidden)[:dims], shape.num_attention_heads))
        rules += [
            Copy(_LAYER + ours + kind, hf_layer + hf + kind, sizes[:dims])
            for ours, (hf, sizes) in linear.items()
        ]
        rules += [Copy(_LAYER + ours + kind, hf_layer + hf + kind, (hidden,)) for ours, hf in norms.items()]
    return rules
