"""What of a step's labels counts, and what tokens see, is the same at every layout."""

import contextlib

import pytest
import torch

from tests.helpers import megatron_cpu
from tests.helpers.megatron_cpu import Workshop, gradients, losses, relative_errors, write_sources
from tests.helpers.packed_attention import packed_on_a_cpu
from tests.parallel.test_layouts import LAYOUTS, RTOL, SHAPE
from xelm_nemo.expert.job import TrainJob
from xelm_nemo.expert.loop import train

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="compares CPU ranks; CUDA_VISIBLE_DEVICES= hides the GPUs from them"
)
KINDS = {"instructions": {}, "masked": {"document_mask": True}, "packed": {"document_mask": True}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of every job, by kind and layout."""
    workshop = Workshop(tmp_path_factory.mktemp("counted"))
    workshop.set_up(SHAPE)
    write_sources(workshop.folder / "tokens")
    alone = {(kind, "alone"): workshop.job(f"{kind}_alone", SHAPE, **KINDS[kind]) for kind in KINDS}
    for folder in alone.values():  # the packed one too is to agree with masks
        train(TrainJob.load(folder))
    divided = {
        (kind, name): workshop.job(f"{kind}_{name}", SHAPE, layout=layout, **KINDS[kind])
        for kind in KINDS
        for name, layout in LAYOUTS.items()
    }
    ports = megatron_cpu.free_ports(len(divided))
    megatron_cpu.on_ranks(2, rank_main, list(divided.values()), ports)
    return alone | divided


def rank_main(folders, ports):
    for folder, port in zip(folders, ports, strict=True):
        with packed_on_a_cpu() if folder.name.startswith("packed") else contextlib.nullcontext():
            megatron_cpu.train_in_turn([folder], [port])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_layout_changes_no_loss_and_no_gradient(trained, kind, layout):
    found, expected = trained[kind, layout], trained[kind, "alone"]
    assert losses(found).keys() == {("loss", 1), ("valid_loss", 1)}
    assert losses(found) == pytest.approx(losses(expected), rel=RTOL)
    errors = relative_errors(gradients(found, iteration=1), gradients(expected, iteration=1))
    assert {name: error for name, error in errors.items() if not error <= RTOL} == {}
