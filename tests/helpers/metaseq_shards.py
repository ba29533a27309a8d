"""Hugging Face models written as metaseq writes them from training: parts, cut up by fairscale's FSDP."""

from argparse import Namespace

import torch

from tests.helpers.metaseq_files import metaseq_settings, parts_of


def write_shards(model, folder, num_parts, num_shards, *, wrapped=True, half=False, prefix="checkpoint_last"):
    """What training writes with tensor parallelism and fairscale's FSDP: a file for each process.

    Args:
        model: a Hugging Face model.
        folder: the folder to write.
        num_parts: tensor-parallel parts; None for names without a part.
        num_shards: of each part.
        wrapped: whether every layer has a flat tensor of its own, as in all but the smallest models.
        half: whether the weights are float16.
        prefix: what the names begin with.
    """
    folder.mkdir(exist_ok=True)
    for number, part in enumerate(parts_of(model, num_parts or 1, fused=True)):
        part = {name: tensor.half() if half else tensor for name, tensor in part.items()}
        groups = _flat_groups(part, wrapped=wrapped)
        for shard in range(num_shards):
            content = {
                "args": None,
                "cfg": {"model": Namespace(**metaseq_settings(model)), "common": {"fp16": True}},
                "model": _shard(part, groups, shard, num_shards),
                "shard_metadata": _shard_metadata(part, groups, shard, num_shards),
                "last_optimizer_state": {"state": {0: {"step": 10, "exp_avg": torch.zeros(3)}}},
            }
            middle = "" if num_parts is None else f"-model_part-{number}"
            torch.save(content, folder / f"{prefix}{middle}-shard{shard}.pt")
    return folder


def write_flat_parts(model, folder, num_parts, *, wrapped=True, prefix="reshard"):
    """Parts as OPT's are published: shards joined, tensors flat, and nothing that says what they are."""
    folder.mkdir(exist_ok=True)
    for number, part in enumerate(parts_of(model, num_parts, fused=True)):
        flat = _shard(part, _flat_groups(part, wrapped=wrapped), 0, 1)
        content = {"model": flat, "cfg": {"model": Namespace(**metaseq_settings(model))}}
        torch.save(content, folder / f"{prefix}-model_part-{number}.pt")
    return folder


# The order in which metaseq's modules have their parameters, and FSDP flattens them.
_IN_LAYER = (
    "self_attn.qkv_proj",
    "self_attn.out_proj",
    "self_attn_layer_norm",
    "fc1",
    "fc2",
    "final_layer_norm",
)
_BEFORE = ("embed_tokens", "project_in_dim", "embed_positions")
_BEHIND = ("layer_norm", "project_out_dim")
_HEAD = (
    "decoder.output_projection.weight"  # shares its storage with the table, so that it is in no flat tensor
)


def _flat_groups(part, *, wrapped):
    """FSDP module -> the names of the parameters that it flattens; the root module is called ""."""
    layers = sorted({int(name.split(".")[2]) for name in part if name.startswith("decoder.layers.")})
    inside = {f"decoder.layers.{n}": _named(part, f"decoder.layers.{n}.", _IN_LAYER) for n in layers}
    between = [] if wrapped else [name for names in inside.values() for name in names]
    root = [*_named(part, "decoder.", _BEFORE), *between, *_named(part, "decoder.", _BEHIND)]
    return {"": root} | (inside if wrapped else {})


def _named(part, start, modules):
    names = [f"{start}{module}.{kind}" for module in modules for kind in ("weight", "bias")]
    return [name for name in names if name in part]


def _buffers(part):
    return [name for name in part if name.endswith(("version", "_float_tensor"))]


def _shard(part, groups, number, num_shards):
    flat = {}
    for module, names in groups.items():
        whole = torch.cat([part[name].flatten() for name in names])
        size = -(-whole.numel() // num_shards)
        padded = torch.nn.functional.pad(whole, (0, size * num_shards - whole.numel()))
        flat[f"{module}.flat_param_0".lstrip(".")] = padded[size * number :][:size].clone()
    return flat | {name: part[name] for name in _buffers(part)}


def _shard_metadata(part, groups, number, num_shards):
    modules = []
    for module, names in groups.items():
        tensors = [part[name] for name in names]
        num_all = sum(tensor.numel() for tensor in tensors)
        size = -(-num_all // num_shards)
        own = max(0, min(size, num_all - size * number))
        flat = {
            "names": [name.removeprefix(f"{module}.") for name in names],
            "shapes": [tensor.shape for tensor in tensors],
            "numels": [tensor.numel() for tensor in tensors],
            "padding": size - own,
        }
        shared = [] if module else [("decoder.embed_tokens.weight", _HEAD)]
        modules.append(
            {
                "fsdp_path": module,
                "params": {"flat_param_0": flat},
                "no_broadcast_optim_state": False,
                "shared_param_info": shared,
            }
        )
    return {"param_metadata": modules, "buffer_names": _buffers(part)}
