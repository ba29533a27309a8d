"""Transformer Engine's part in attention over packed documents, played by Megatron's own on a CPU."""

import contextlib
from unittest import mock

import torch


@contextlib.contextmanager
def packed_on_a_cpu():
    """Models take packed documents in this process."""
    from megatron.core.transformer.dot_product_attention import DotProductAttention

    from xelm_nemo.expert import data
    from xelm_nemo.model import documents

    masked = DotProductAttention.forward

    def forward(self, query, key, value, attention_mask, packed_seq_params=None, **kwargs):
        if packed_seq_params is None:
            return masked(self, query, key, value, attention_mask, **kwargs)
        assert attention_mask is None and packed_seq_params.qkv_format == "thd" and query.dim() == 3
        bounds = packed_seq_params.cu_seqlens_q
        assert bounds.dtype == torch.int32 and bounds[0] == 0 and bounds[-1] == len(query)
        assert bounds.diff().max() <= packed_seq_params.max_seqlen_q < bounds.diff().max() + 64
        mask = _unseen(bounds)[None, None]
        attended = masked(self, *(x.unsqueeze(1) for x in (query, key, value)), mask, **kwargs)
        return attended.squeeze(1)

    with (
        mock.patch.object(DotProductAttention, "forward", forward),
        mock.patch.object(documents, "takes_packed", lambda: True),
        mock.patch.object(data, "takes_packed", lambda: True),
    ):
        yield


def _unseen(bounds):
    """What a token may not see, bool [T, T], by the definition."""
    token = torch.arange(int(bounds[-1]))
    document = torch.bucketize(token, bounds[1:].long(), right=True)
    return (document[:, None] != document[None, :]) | (token[None, :] > token[:, None])
