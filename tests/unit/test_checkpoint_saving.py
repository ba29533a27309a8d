"""States are saved while training goes on: as they were when the save began, whole or not at all."""

import io
import math
import threading

import pytest
import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor

from tests.helpers.megatron_cpu import Workshop, checkpoint_tensors, moved
from tests.helpers.weights import assert_same_tensors, assert_same_weights
from xelm_nemo import device
from xelm_nemo.checkpoint import host_memory, saving, store
from xelm_nemo.checkpoint.host_memory import HostMemory
from xelm_nemo.errors import CheckpointError, TrainingError
from xelm_nemo.expert import loop, step
from xelm_nemo.expert.job import TrainJob
from xelm_nemo.model.config import ModelConfig, ParallelConfig

SHAPE = ModelConfig(
    num_layers=1, hidden_size=16, ffn_hidden_size=32, num_attention_heads=2, max_position_embeddings=32
)
LENGTH = {"train_iters": 7, "save_interval": 3, "keep_last": 9}


@pytest.fixture(scope="module", autouse=True)
def on_this_device():
    device.enter()


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    workshop = Workshop(tmp_path_factory.mktemp("saving"))
    workshop.set_up(SHAPE)
    return workshop


@pytest.fixture(scope="module")
def undisturbed(workshop):
    folder = workshop.job("undisturbed", SHAPE, **LENGTH)
    loop.train(TrainJob.load(folder))
    return folder


def saved(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_training_goes_on_while_a_state_is_written_as_it_was(workshop, undisturbed, monkeypatch):
    may_write, write = threading.Event(), saving.Save._write
    monkeypatch.setattr(saving.Save, "_write", lambda *args: may_write.wait(60) and write(*args))
    folder, during = workshop.job("slow_disk", SHAPE, **LENGTH), []

    def at_step(iteration):
        if iteration == 5:
            during.extend(saved(folder))
            may_write.set()

    loop.train(TrainJob.load(folder), loop.Watch(at_step=at_step))
    assert during == [".iter_0000003.part"]
    assert saved(folder) == saved(undisturbed) == ["iter_0000003", "iter_0000006", "iter_0000007"]
    for name in saved(folder):
        assert_same_tensors(
            *(checkpoint_tensors(place / "checkpoints" / name) for place in (folder, undisturbed))
        )


def test_plan_that_is_known_by_then_saves_the_same_and_can_be_gone_on_from(workshop, undisturbed):
    folder = workshop.job("often", SHAPE, **LENGTH | {"save_interval": 1})
    loop.train(TrainJob.load(folder))
    for name in saved(undisturbed):
        assert_same_tensors(
            *(checkpoint_tensors(place / "checkpoints" / name) for place in (folder, undisturbed))
        )
    again = moved(folder, ParallelConfig(), name="again", without=["iter_0000006", "iter_0000007"])
    loop.train(TrainJob.load(again))
    assert_same_weights(again / "model", undisturbed / "model")


def test_state_with_a_tensor_that_the_plan_does_not_know_is_refused(workshop, undisturbed, monkeypatch):
    state = store.Checkpoints._state
    calls = []

    def grown(model, optimizer, *, loading):
        found = state(model, optimizer, loading=loading)
        calls.append(loading)
        if len([was_loading for was_loading in calls if not was_loading]) == 2:
            weight = torch.ones(3)
            found["model"]["new"] = ShardedTensor.from_rank_offsets("new", weight)
        return found

    monkeypatch.setattr(store.Checkpoints, "_state", staticmethod(grown))
    folder = workshop.job("grown", SHAPE, **LENGTH)
    with pytest.raises(CheckpointError, match="the state has changed in new since the run's first save"):
        loop.train(TrainJob.load(folder))
    assert saved(folder) == ["iter_0000003"]


def test_full_disk_ends_the_run_and_leaves_what_is_whole(workshop, monkeypatch):
    folder, written = workshop.job("full_disk", SHAPE, **LENGTH), []

    def write(save, buckets, *, whole=saving.Save._write):
        written.append(save)
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        whole(save, buckets)

    monkeypatch.setattr(saving.Save, "_write", write)
    with pytest.raises(CheckpointError, match=r"checkpoints cannot be written \(.*No space left on device\)"):
        loop.train(TrainJob.load(folder))
    assert saved(folder) == ["iter_0000003"]


def test_state_that_is_being_written_when_training_fails_is_kept(workshop, monkeypatch):
    folder, update, count = workshop.job("diverges", SHAPE, **LENGTH), step.update, []

    def diverging(optimizer):
        count.append(1)
        return math.nan if len(count) == 4 else update(optimizer)

    monkeypatch.setattr(step, "update", diverging)
    with pytest.raises(TrainingError, match="the last checkpoint is whole"):
        loop.train(TrainJob.load(folder))
    assert saved(folder) == ["iter_0000003"]


def test_any_other_error_leaves_no_thread_at_work_and_nothing_half_written(workshop, monkeypatch):
    folder, update, count = workshop.job("breaks", SHAPE, **LENGTH), step.update, []

    def breaking(optimizer):
        count.append(1)
        if len(count) == 4:
            raise RuntimeError("CUDA out of memory")
        return update(optimizer)

    monkeypatch.setattr(step, "update", breaking)
    with pytest.raises(RuntimeError, match="out of memory"):
        loop.train(TrainJob.load(folder))
    assert saved(folder) in ([], ["iter_0000003"])  # abandoned, or whole by then
    assert not any(thread.name.startswith("save") and thread.is_alive() for thread in threading.enumerate())


def test_what_killed_saves_have_left_is_deleted_by_the_next_one(workshop):
    folder = workshop.job("untidy", SHAPE, **LENGTH)
    for name in (".iter_0000005.part", ".iter_0000001.old"):
        (folder / "checkpoints" / name).mkdir(parents=True)
        (folder / "checkpoints" / name / "half").write_text("a state")
    loop.train(TrainJob.load(folder))
    assert saved(folder) == ["iter_0000003", "iter_0000006", "iter_0000007"]


def test_last_state_is_not_written_where_it_would_not_stay(workshop):
    folder = workshop.job("lean", SHAPE, **LENGTH, keep_optimizer=False)
    loop.train(TrainJob.load(folder))
    assert saved(folder) == ["iter_0000003", "iter_0000006"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.uint8])
def test_host_memory_copies_every_shape(dtype):
    memory = HostMemory()
    for sizes in ([(3,), (2, 5), (), (0, 4)], [(700, 3), (1,)], [(2,)]):
        tensors = [(torch.rand(size) * 99).to(dtype) for size in sizes]
        copies, copied = memory.copy([*tensors, torch.rand(6, 4).t()])
        copied.synchronize()
        assert_same_tensors(dict(enumerate(tensors)), dict(enumerate(copies[:-1])))


def test_copy_is_stored_without_its_neighbours():
    copies, _ = HostMemory().copy([torch.zeros(10), torch.zeros(1000, 100)])
    file = io.BytesIO()
    torch.save(copies[0], file)
    assert file.tell() < 5000


def test_copies_do_not_follow_what_they_were_copied_from():
    tensor = torch.ones(4)
    (copy,), _ = HostMemory().copy([tensor])
    tensor.zero_()
    assert copy.tolist() == [1, 1, 1, 1]


def test_pages_are_locked_once_and_unlocked_before_they_are_given_back(monkeypatch):
    calls, main, sizes = [], threading.current_thread(), [5_120, 9_216]  # whole sectors
    memory = HostMemory()
    monkeypatch.setattr(host_memory.device, "has_cuda", lambda: True)

    def page_lock(pages):
        calls.append(("lock", pages.nbytes))
        return threading.current_thread() is not main  # as CUDA's errors want it

    monkeypatch.setattr(host_memory.device, "page_lock", page_lock)
    monkeypatch.setattr(
        host_memory.device, "page_unlock", lambda pages: calls.append(("unlock", pages.nbytes))
    )
    for size in (5_000, 4_000, 9_000):
        memory.copy([torch.ones(size, dtype=torch.uint8)])
    assert calls == [("lock", sizes[0]), ("unlock", sizes[0]), ("lock", sizes[1])]
    del memory
    assert calls[3:] == [("unlock", sizes[1])]
