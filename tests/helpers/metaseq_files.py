"""Hugging Face models written as metaseq and fairseq write theirs."""

from argparse import Namespace

import pytest
import torch

from xelm_nemo.artifacts import Recipe
from xelm_nemo.checkpoint.hf import import_hf
from xelm_nemo.checkpoint.metaseq import import_metaseq
from xelm_nemo.errors import CheckpointError

RECIPE = Recipe("model", {})
_BY_ROWS = ("embed_tokens", "output_projection", "q_proj", "k_proj", "v_proj", "fc1")
_BY_COLUMNS = ("out_proj.weight", "fc2.weight")


def metaseq_settings(model):
    """The settings of a random model of ours, under metaseq's names."""
    config = model.config
    values = {
        "decoder_layers": config.num_hidden_layers,
        "decoder_embed_dim": config.hidden_size,
        "decoder_ffn_embed_dim": config.ffn_dim,
        "decoder_attention_heads": config.num_attention_heads,
        "max_target_positions": config.max_position_embeddings,
        "activation_fn": config.activation_function,
        "dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "share_decoder_input_output_embed": True,
    }
    if config.model_type == "xglm":
        own = {"decoder_normalize_before": True, "decoder_learned_pos": False, "no_scale_embedding": False}
    else:
        own = {
            **{"decoder_normalize_before": config.do_layer_norm_before, "decoder_learned_pos": True},
            **{"decoder_input_dim": config.word_embed_proj_dim, "no_scale_embedding": True},
            "decoder_output_dim": config.word_embed_proj_dim,
        }
    return values | own


def metaseq_tensors(model, *, fused=False):
    """The weights of a model under metaseq's names, with the tensors beside them that hold none."""
    tensors = {_metaseq_name(name, model.config.model_type): t for name, t in model.state_dict().items()}
    if fused:
        tensors = _fuse(tensors)
    beside = {"decoder.version": torch.tensor([3.0])}
    if model.config.model_type == "xglm":
        beside["decoder.embed_positions._float_tensor"] = torch.zeros(1)
    return {name: tensor.clone() for name, tensor in (tensors | beside).items()}


def _metaseq_name(name, architecture):
    if name == "lm_head.weight":
        return "decoder.output_projection.weight"
    if architecture == "xglm":
        return name.replace("model.", "decoder.", 1)
    name = name.removeprefix("model.").replace("project_in.", "project_in_dim.")
    name = name.replace("project_out.", "project_out_dim.")
    return name.replace("decoder.final_layer_norm.", "decoder.layer_norm.")


def _fuse(tensors):
    fused = {name: tensor for name, tensor in tensors.items() if not _is_projection(name)}
    for name in [name for name in tensors if ".q_proj." in name]:
        kvq = [tensors[name.replace("q_proj", f"{kind}_proj")] for kind in "kvq"]
        fused[name.replace("q_proj", "qkv_proj")] = torch.cat(kvq)
    return fused


def _is_projection(name):
    return any(f".{kind}_proj." in name for kind in "qkv")


def write_consolidated(model, path, *, fused=False, namespace=False, change=None, **settings):
    """A consolidated file; `change` alters its tensors, further arguments its settings (None removes)."""
    tensors = metaseq_tensors(model, fused=fused)
    values = {k: v for k, v in (metaseq_settings(model) | settings).items() if v is not None}
    content = {"model": change(tensors) if change else tensors}
    if namespace:
        content |= {"cfg": {"model": Namespace(**values)}, "args": None}
    else:
        content |= {"cfg": {"model": values}}
    torch.save(content, path)
    return path


def write_parts(model, folder, num_parts, *, fused=True, prefix="checkpoint_last"):
    """Tensor-parallel parts: each has its own rows of keys, of values and of queries."""
    folder.mkdir(exist_ok=True)
    for number, part in enumerate(parts_of(model, num_parts, fused=fused)):
        content = {"model": part, "args": Namespace(**metaseq_settings(model))}
        torch.save(content, folder / f"{prefix}-model_part-{number}.pt")
    return folder


def parts_of(model, num_parts, *, fused):
    """The tensors of each tensor-parallel part of a model."""
    tensors = metaseq_tensors(model)
    for number in range(num_parts):
        part = {name: _piece(name, tensor, number, num_parts) for name, tensor in tensors.items()}
        yield _fuse(part) if fused else part


def _piece(name, tensor, number, num_parts):
    if any(f".{word}." in name for word in _BY_ROWS):
        return tensor.chunk(num_parts, 0)[number].clone()
    if name.endswith(_BY_COLUMNS):
        return tensor.chunk(num_parts, 1)[number].clone()
    return tensor


def with_imported(make, settings, root):
    """A random model, and the model folder that its Hugging Face folder was imported to."""
    torch.manual_seed(0)
    model = make(**settings)
    model.save_pretrained(root / "hf")
    import_hf(root / "hf", root / "imported", RECIPE)
    return model, root / "imported"


def assert_refused(source, folder, *said):
    """The import ends in one line that says all this, and leaves nothing behind."""
    with pytest.raises(CheckpointError) as caught:
        import_metaseq(source, folder / "out/model", RECIPE, tokenizer="words")
    message = str(caught.value)
    assert "\n" not in message
    for part in said:
        assert part in message
    assert not (folder / "out").exists() or list((folder / "out").iterdir()) == []
