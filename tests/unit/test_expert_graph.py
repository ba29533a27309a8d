"""Which steps may be a CUDA graph, and what comes of one that cannot be recorded."""

import contextlib

import pytest
import torch
from megatron.core.tensor_parallel import random

from xelm_nemo import device
from xelm_nemo.errors import TrainingError
from xelm_nemo.expert.graph import WARM_UPS, StepGraph, why_no_graph


def test_nothing_is_recorded_without_a_gpu():
    assert why_no_graph(document_mask=False, seq_length=128, pipeline_stages=1) == "there is no GPU"


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({}, None),
        ({"document_mask": True}, "training.document_mask=true"),
        ({"seq_length": 64}, "training.seq_length=64"),
        ({"pipeline_stages": 2}, "stages of a pipeline"),
    ],
)
def test_steps_that_differ_or_read_too_far_are_not_recorded(monkeypatch, changes, reason):
    monkeypatch.setattr(device, "has_cuda", lambda: True)
    found = why_no_graph(**{"document_mask": False, "seq_length": 2048, "pipeline_stages": 1} | changes)
    assert found is None if reason is None else reason in found


def test_step_that_cannot_be_recorded_ends_with_what_to_set(monkeypatch):
    @contextlib.contextmanager
    def record(graph, **options):
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph", record)
    monkeypatch.setattr(random, "get_all_rng_states", dict)
    calls = []

    def run(batches):
        calls.append(list(batches))
        if len(calls) > WARM_UPS:
            raise RuntimeError("CUDA out of memory\nand more")
        return torch.zeros(())

    graph = StepGraph(run)
    for _ in range(WARM_UPS):
        graph(iter([{"tokens": torch.ones(1)}]))
    with pytest.raises(TrainingError, match=r"out of memory and more\).*training\.cuda_graphs=false"):
        graph(iter([{"tokens": torch.ones(1)}]))
