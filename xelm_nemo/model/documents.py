"""Documents of a packed sequence that do not see each other.

Transformer Engine takes the sequences of a micro-batch as one, [1, B * S], and where each document in it
ends; what no token may see is not computed. Megatron's own attention takes a mask.
Shape letters: B micro-batch, S sequence, D documents of a micro-batch.
"""

import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from xelm_nemo import device
from xelm_nemo.model.config import ModelConfig
from xelm_nemo.model.layers import has_transformer_engine

_LEAST_CAPABILITY = (9, 0)  # for which cuDNN has attention over packed documents
_SMALL_BLACKWELL = (12, 0)  # for which Transformer Engine does not use it
_WIDEST_HEAD = 128
_LENGTH_MULTIPLE = 64  # to which Transformer Engine rounds a longest document that it is not told


def takes_packed() -> bool:
    """Whether the model's attention takes a micro-batch as one sequence of documents."""
    return has_transformer_engine()


def can_pack(shape: ModelConfig, dtype: torch.dtype) -> bool:
    """Whether texts of any lengths can be read end to end, each as if alone, and nothing else is computed.

    That is cuDNN's attention, for 16-bit numbers and heads that it has; `NVTE_FUSED_ATTN=0` turns it off.
    """
    head = shape.hidden_size // shape.num_attention_heads
    return (
        takes_packed()
        and dtype.itemsize == 2
        and head % 8 == 0
        and head <= _WIDEST_HEAD
        and os.environ.get("NVTE_FUSED_ATTN") != "0"
        and _LEAST_CAPABILITY <= device.capability() < _SMALL_BLACKWELL
    )


def end_to_end(lengths: Sequence[int]) -> dict[str, Any]:
    """What keeps texts that lie end to end in one row apart, and their positions, as the model is called."""
    positions_BS = np.concatenate([np.arange(length) for length in lengths])[None]
    return {"position_ids": device.sent(positions_BS), **within_documents(positions_BS)}


def within_documents(positions_BS: NDArray[np.int64]) -> dict[str, Any]:
    """What keeps attention within documents, as the model is called with it.

    Args:
        positions_BS: of each token in its document, which begins at 0, and anew with a sequence.

    Returns:
        `packed_seq_params` if the model `takes_packed`, else `attention_mask`.
    """
    if takes_packed():
        return {"attention_mask": None, "packed_seq_params": _packed(positions_BS)}
    document_BS = torch.from_numpy(np.cumsum(positions_BS == 0, axis=1)).to(device.device())
    other_BSS = document_BS[:, :, None] != document_BS[:, None, :]
    return {"attention_mask": (other_BSS | _later(positions_BS.shape[1]))[:, None]}


def mask_problem(*, deterministic: bool) -> str | None:
    """Why this machine cannot keep attention within documents; None if it can."""
    if not has_transformer_engine():
        return None
    if deterministic:
        return (
            "training.document_mask=true does not go with training.deterministic=true on a GPU: attention "
            "over packed documents repeats its bits there at small sizes alone; set one of them to false"
        )
    found = device.capability()
    if found < _LEAST_CAPABILITY and importlib.util.find_spec("flash_attn") is None:
        return (
            f"training.document_mask=true needs a GPU of compute capability 9.0 or more, and {device.name()} "
            f"has {found[0]}.{found[1]}; install flash-attn, or set training.document_mask=false"
        )
    return None


def _packed(positions_BS: NDArray[np.int64]) -> Any:
    from megatron.core.packed_seq_params import PackedSeqParams

    starts_D = np.flatnonzero(positions_BS == 0)
    bounds = np.append(starts_D, positions_BS.size).astype(np.int32)
    sent = device.sent(bounds)
    # Known here, so that nobody waits for the GPU to say it; rounded, for kernels are chosen by it.
    longest = -(-int(np.diff(bounds).max()) // _LENGTH_MULTIPLE) * _LENGTH_MULTIPLE
    return PackedSeqParams(
        qkv_format="thd", cu_seqlens_q=sent, cu_seqlens_kv=sent, max_seqlen_q=longest, max_seqlen_kv=longest
    )


def _later(length: int) -> torch.Tensor:
    """Which token comes after which, bool [S, S]."""
    return torch.ones(length, length, dtype=torch.bool, device=device.device()).triu(1)
