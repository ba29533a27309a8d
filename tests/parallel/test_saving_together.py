"""Two ranks save together while they train: one is slow, or fails, or finds no room."""

import threading
import time

import pytest
import torch

from tests.helpers.megatron_cpu import Workshop, checkpoint_tensors, free_ports, on_ranks, train_in_turn
from tests.helpers.weights import assert_same_tensors
from tests.parallel.test_layouts import DROPOUT
from xelm_nemo.model.config import ParallelConfig

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="its ranks are on a CPU")
TWO = ParallelConfig(tensor_model_parallel_size=2)
LENGTH = {"train_iters": 6, "save_interval": 2, "keep_last": 9}


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    workshop = Workshop(tmp_path_factory.mktemp("together"))
    workshop.set_up(DROPOUT)
    return workshop


def saved(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def train_with_a_slow_rank(folder, ports):
    """Rank 1 takes a while to write."""
    import torch.distributed as dist

    from xelm_nemo.checkpoint.saving import Save

    def slowly(save, buckets, *, write=Save._write):
        time.sleep(0.3 * dist.get_rank())
        write(save, buckets)

    Save._write = slowly
    train_in_turn([folder], ports)


def test_slow_rank_is_waited_for_and_nothing_else_changes(workshop):
    slow, plain = (workshop.job(name, DROPOUT, layout=TWO, **LENGTH) for name in ("slow", "plain"))
    on_ranks(2, train_with_a_slow_rank, slow, free_ports(1))
    on_ranks(2, train_in_turn, [plain], free_ports(1))
    assert saved(slow) == saved(plain) == [f"iter_{n:07d}" for n in (2, 4, 6)]
    for name in saved(slow):
        found, expected = (checkpoint_tensors(folder / "checkpoints" / name) for folder in (slow, plain))
        assert_same_tensors(found, expected)


@pytest.mark.parametrize("layout", [TWO, ParallelConfig(data_parallel_size=2)], ids=["tp2", "dp2"])
def test_ranks_that_know_the_plan_save_the_same(workshop, layout, request):
    lengths = {"often": LENGTH | {"save_interval": 1}, "once": LENGTH | {"save_interval": 6}}
    which = request.node.callspec.id
    often, once = (
        workshop.job(f"{name}_{which}", DROPOUT, layout=layout, **length) for name, length in lengths.items()
    )
    on_ranks(2, train_in_turn, [often, once], free_ports(2))
    found, expected = (checkpoint_tensors(folder / "checkpoints/iter_0000006") for folder in (often, once))
    assert_same_tensors(found, expected)


def fail_on(rank, part, folder, ports):
    """One rank's second save fails, in its write or when the folder gets its name; what each rank says."""
    import os

    from xelm_nemo.checkpoint import saving, store
    from xelm_nemo.errors import XelmError

    own, count, lock = int(os.environ["RANK"]), [], threading.Lock()

    def full(work):
        def instead(*args):
            with lock:
                count.append(1)
            if own == rank and len(count) == 2:
                raise OSError(28, "No space left on device")
            return work(*args)

        return instead

    if part == "write":
        saving.Save._write = full(saving.Save._write)
    else:
        store.artifacts.write_manifest = full(store.artifacts.write_manifest)
    said = "nothing"
    try:
        train_in_turn([folder], ports)
    except XelmError as error:
        said = str(error)
    (folder / f"said{own}").write_text(said)


@pytest.mark.parametrize("rank, part", [(1, "write"), (0, "write"), (0, "name")])
def test_all_ranks_fail_with_the_one_that_does_and_what_is_whole_stays(workshop, rank, part):
    folder = workshop.job(f"fails_{rank}_{part}", DROPOUT, layout=TWO, **LENGTH)
    on_ranks(2, fail_on, rank, part, folder, free_ports(1))
    said = [(folder / f"said{each}").read_text() for each in (0, 1)]
    assert "No space left on device" in said[rank]
    assert all("cannot be written" in each for each in said)
    assert saved(folder) == ["iter_0000002"]
