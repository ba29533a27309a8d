"""Which steps may be a CUDA graph."""

import pytest

from xelm_nemo import device
from xelm_nemo.expert.graph import why_no_graph


def test_nothing_is_recorded_without_a_gpu():
    assert why_no_graph(document_mask=False, seq_length=64) == "there is no GPU"


@pytest.mark.parametrize(
    "document_mask, seq_length, reason",
    [(False, 2048, None), (True, 2048, "training.document_mask=true"), (False, 32, "training.seq_length=32")],
)
def test_steps_that_differ_or_read_too_far_are_not_recorded(monkeypatch, document_mask, seq_length, reason):
    monkeypatch.setattr(device, "has_cuda", lambda: True)
    found = why_no_graph(document_mask=document_mask, seq_length=seq_length)
    assert found is None if reason is None else reason in found
