"""Which steps may be a CUDA graph, and what comes of one that cannot be recorded."""

import contextlib

import pytest
import torch
from megatron.core.tensor_parallel import random

from xelm_nemo import device
from xelm_nemo.errors import ConfigError
from xelm_nemo.expert.graph import WARM_UPS, StepGraph, why_no_graph
from xelm_nemo.model.config import FP8Config, ParallelConfig


def test_nothing_is_recorded_without_a_gpu():
    assert why_no_graph(ParallelConfig(), seq_length=128) == "there is no GPU"


@pytest.mark.parametrize(
    "layout, changes, reason",
    [
        ({}, {}, None),
        ({"tensor_model_parallel_size": 4}, {}, None),
        ({"tensor_model_parallel_size": 2, "data_parallel_size": 2}, {}, None),
        ({}, {"document_mask": True}, "training.document_mask=true"),
        ({}, {"is_sparse": True}, "moe_experts take other numbers of tokens"),
        ({}, {"seq_length": 64}, "training.seq_length=64"),
        ({}, {"fp8": FP8Config("delayed", head=True)}, None),
        ({}, {"fp8": FP8Config("delayed", param_gather=True)}, "precision.fp8.param_gather=true"),
        ({"pipeline_model_parallel_size": 2}, {}, "stages of a pipeline"),
        ({"recompute_granularity": "selective"}, {}, "parallel.recompute_granularity"),
        ({"data_parallel_size": 2}, {}, None),
        ({"data_parallel_size": 8}, {}, "several machines"),
    ],
)
def test_steps_that_a_graph_does_not_suit_are_not_recorded(monkeypatch, layout, changes, reason):
    monkeypatch.setattr(device, "has_cuda", lambda: True)
    monkeypatch.setenv("WORLD_SIZE", str(ParallelConfig(**layout).num_ranks))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(min(4, ParallelConfig(**layout).num_ranks)))
    found = why_no_graph(ParallelConfig(**layout), **{"seq_length": 2048} | changes)
    assert found is None if reason is None else reason in found


class Recording:
    """A stand-in for a CUDA graph."""

    ended = 0

    def reset(self):
        Recording.ended += 1


def test_step_that_cannot_be_recorded_ends_with_what_to_set(monkeypatch):
    @contextlib.contextmanager
    def record(graph, **options):
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recording)
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
    with pytest.raises(ConfigError, match=r"out of memory and more\).*training\.cuda_graphs=false"):
        graph(iter([{"tokens": torch.ones(1)}]))
    graph.end()
    assert Recording.ended == 1, "NCCL would wait for it"
