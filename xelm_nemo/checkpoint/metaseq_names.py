"""Names of metaseq's and fairseq's tensors: Hugging Face's for each, and how parts of one are joined."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from xelm_nemo.checkpoint.lazy import LazyTensor
from xelm_nemo.checkpoint.mapping import name_problems, shorten
from xelm_nemo.errors import CheckpointError

_ROWS, _COLUMNS = 0, 1
_ROOTS = {"xglm": "model.", "opt": "model.decoder."}
_FINAL_NORM = {"xglm": "layer_norm.", "opt": "final_layer_norm."}
_LAYER = "layers.*."
# What tensor parallelism does to the tensors of a layer: weights of these are divided along ...
_BY_ROWS = ("self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj.", "fc1.")  # biases too
_BY_COLUMNS = ("self_attn.out_proj.", "fc2.")  # biases are whole in every part
_WHOLE = ("self_attn_layer_norm.", "final_layer_norm.")
_FLOAT = "decoder.embed_positions._float_tensor"
_FUSED_ORDER = "kvq"  # metaseq's, within each part
TOKENS, HEAD = "decoder.embed_tokens.weight", "decoder.output_projection.weight"  # tied


@dataclass(frozen=True)
class Entry:
    """What becomes of one tensor: none, one, or three (fused projections) of Hugging Face's."""

    hf: tuple[str, ...]
    divided: int | None = None  # the dimension along which parts divide it; None: whole in every part


def name_table(architecture: str) -> dict[str, Entry]:
    """Every tensor that a checkpoint of "xglm" or "opt" may hold, `*` for the number of a layer."""
    root = _ROOTS[architecture]
    table = {
        TOKENS: Entry((f"{root}embed_tokens.weight",), _ROWS),
        HEAD: Entry(("lm_head.weight",), _ROWS),
        "decoder.version": Entry(()),
        _FLOAT: Entry(()),
    }
    if architecture == "opt":
        table["decoder.embed_positions.weight"] = Entry((f"{root}embed_positions.weight",))
        for name in ("project_in", "project_out"):
            table[f"decoder.{name}_dim.weight"] = Entry((f"{root}{name}.weight",))
    for kind in ("weight", "bias"):
        table[f"decoder.layer_norm.{kind}"] = Entry((root + _FINAL_NORM[architecture] + kind,))
        table |= _layer_table(root, kind)
    return table


def _layer_table(root: str, kind: str) -> dict[str, Entry]:
    divided: dict[str, int | None] = dict.fromkeys(_BY_ROWS, _ROWS)
    divided |= dict.fromkeys(_BY_COLUMNS, _COLUMNS if kind == "weight" else None)
    divided |= dict.fromkeys(_WHOLE, None)
    table = {
        f"decoder.{_LAYER}{name}{kind}": Entry((f"{root}{_LAYER}{name}{kind}",), dim)
        for name, dim in divided.items()
    }
    fused = tuple(f"{root}{_LAYER}self_attn.{name}_proj.{kind}" for name in _FUSED_ORDER)
    return table | {f"decoder.{_LAYER}self_attn.qkv_proj.{kind}": Entry(fused, _ROWS)}


def from_hf(name: str, architecture: str) -> str:
    """What metaseq calls a tensor of Hugging Face's; projections are apart."""
    number = re.search(r"\.layers\.(\d+)\.", name)
    pattern = name.replace(number[0], ".layers.*.", 1) if number else name
    ours = next(ours for ours, entry in name_table(architecture).items() if entry.hf == (pattern,))
    return ours.replace("*", number[1]) if number else ours


def weightless(architecture: str) -> dict[str, Tensor]:
    """The tensors beside the weights that metaseq's and fairseq's own checkpoints hold."""
    beside = {"decoder.version": torch.tensor([3.0])}
    return beside if architecture == "opt" else beside | {_FLOAT: torch.zeros(1)}


def to_hf(
    parts: Sequence[Mapping[str, LazyTensor]], table: Mapping[str, Entry], *, source: str
) -> tuple[dict[str, LazyTensor], list[str]]:
    """Name every tensor as Hugging Face does; its parts are joined when it is read.

    Args:
        parts: the tensors of each part; one for a consolidated checkpoint.
        table: as `name_table` gives it.
        source: what errors call the checkpoint.

    Returns:
        Hugging Face name -> tensor, and the names of the tensors that hold no weights and were dropped.

    Raises:
        CheckpointError: lists tensors that are unknown, not in every part, or whose parts do not fit; once
            read, names one that should be the same in every part and is not.
    """
    _check_names(parts, table, source)
    tensors: dict[str, LazyTensor] = {}
    dropped = []
    for name in parts[0]:
        pattern, number = _numbered(name)
        entry = table[pattern]
        if not entry.hf:
            dropped.append(name)
            continue
        names = [hf.replace("*", number) for hf in entry.hf]
        if twice := tensors.keys() & set(names):
            raise CheckpointError(f"{source}: {name} and another tensor both give {min(twice)}; remove one.")
        pieces = [part[name] for part in parts]
        tensors |= zip(names, _joined(pieces, entry, f"{source}: {name}"), strict=True)
    return tensors, dropped


def _check_names(parts: Sequence[Mapping[str, LazyTensor]], table: Mapping[str, Entry], source: str) -> None:
    unknown = sorted({name for part in parts for name in part if _numbered(name)[0] not in table})
    if unknown:
        raise CheckpointError(
            f"{source} has tensors that no XGLM or OPT has: {shorten(unknown)}; give a checkpoint without."
        )
    for number, part in enumerate(parts):
        if problems := name_problems(part, wanted=set(parts[0])):
            raise CheckpointError(
                f"{source}: part {number} has other tensors than part 0: {problems}; "
                "give the parts of one checkpoint."
            )


def _numbered(name: str) -> tuple[str, str]:
    """A name with `*` for the number of its layer, and that number."""
    found = re.match(r"(decoder\.layers\.)(0|[1-9]\d*)(\..*)", name)
    return (f"{found[1]}*{found[3]}", found[2]) if found else (name, "")


def _joined(pieces: Sequence[LazyTensor], entry: Entry, what: str) -> list[LazyTensor]:
    """The tensors of an entry from its pieces in every part."""
    first, count, dim = pieces[0], len(entry.hf), entry.divided
    if any(not piece.shape or piece.shape[0] % count for piece in pieces):
        raise CheckpointError(f"{what} has {_shapes(pieces)}, which is not {count} of one kind.")
    shape = [first.shape[0] // count, *first.shape[1:]]
    if len(pieces) > 1 and dim is not None:
        if len({_without(piece.shape, dim) for piece in pieces}) > 1 or dim >= len(first.shape):
            raise CheckpointError(f"{what} has {_shapes(pieces)}, which cannot be joined.")
        shape[dim] = sum(piece.shape[dim] for piece in pieces) // (count if dim == _ROWS else 1)

    place = first.place if len(pieces) == 1 else str(Path(first.place).parent)

    def tensor(kind: int) -> LazyTensor:
        def read() -> Tensor:
            found = [piece.read() for piece in pieces]
            if dim is None:
                return _agreed(found, what)
            # Each part has its own keys, values and queries: those of all parts come together.
            of_kind = [one.chunk(count)[kind] for one in found]
            return of_kind[0] if len(of_kind) == 1 else torch.cat(of_kind, dim)

        return LazyTensor(tuple(shape), first.dtype, read, place)

    return [tensor(kind) for kind in range(count)]


def _without(shape: tuple[int, ...], dim: int) -> tuple[int, ...]:
    return (*shape[:dim], *shape[dim + 1 :])


def _agreed(copies: Sequence[Tensor], what: str) -> Tensor:
    """What all parts hold, the same but for rounding, as metaseq's own consolidation asks."""
    first = copies[0]
    for other in copies[1:]:
        same = first.shape == other.shape
        if not same or not torch.allclose(first.float(), other.float(), equal_nan=True):
            raise CheckpointError(f"{what} differs between the parts; give the parts of one checkpoint.")
    return first


def _shapes(pieces: Iterable[LazyTensor]) -> str:
    return "shape " + ", ".join(str(list(piece.shape)) for piece in pieces)
