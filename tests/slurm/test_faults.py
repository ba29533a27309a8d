"""Sixteen experts on four nodes of a real SLURM, and everything that can befall them.

One story, told in order by the tests of this file: what comes before is what the next one starts from.
"""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import re
import shutil
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.helpers.commands import SMALL, start, started
from tests.helpers.slurm_cluster import commands, is_running, process_state, wait_for
from tests.helpers.weights import read_weights
from xelm_nemo.expert.job import TrainJob
from xelm_nemo.expert.loop import train
from xelm_nemo.launch.job import Job
from xelm_nemo.launch.local import run_jobs
from xelm_nemo.launch.slurm import ACTIVE
from xelm_nemo.launch.state import read_state
from xelm_nemo.log import read_metrics
from xelm_nemo.stages.jobs import WORKER
from xelm_nemo.stages.rows import open_run, rows
from xelm_nemo.stages.submit import recorded

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1500)]

EXPERTS, PARALLEL = 16, 4
# Some five seconds of training on an idle machine: a fault wants an expert that it finds in the midst of it,
# and a state is written every two.
ITERATIONS, LOGGED_EVERY = 240, 15
SETTINGS = [
    *(word for word in SMALL if "num_clusters" not in word and not word.startswith("training.")),
    *(f"clustering.num_clusters={EXPERTS}", "training.seq_length=32"),
    *(f"training.train_iters={ITERATIONS}", "training.save_interval=60"),
    *("training.global_batch_size=32", "training.micro_batch_size=1", "seed_model.train_iters=0"),
    *(f"training.log_interval={LOGGED_EVERY}", "training.eval_interval=1000"),
    *("dense.enabled=false", "launch=slurm", f"launch.max_parallel={PARALLEL}"),
    *("launch.slurm.gpus_per_rank=0", "launch.slurm.cpus_per_rank=1", "launch.slurm.ranks_per_node=1"),
    *("launch.slurm.mem_gb=3", "launch.slurm.time=30", "launch.slurm.grace_seconds=100"),
]
ALONE = "finish_with=[]"  # training, with no evaluation behind it
STUBBORN, STARVED = 9, 5  # the expert that always fails, and the one that is given too little memory first
WRONG_SECONDS = 5.0  # as long as the status may lag behind what is so
HOLD_SECONDS = 4.0  # sooner, a node still takes a job that comes back for the one that went


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs") / "run"


def command(verb, folder, *arguments):
    """Run a command to its end: exit code and what it said."""
    process = start(verb, *arguments, f"output={folder}")
    output, error = process.communicate(timeout=600)
    return process.returncode, output + error


def expert(folder, number):
    return folder / f"experts/round0/expert{number}"


class Witness(threading.Thread):
    """Every second: what the status says, and what is so. Also lets requeued jobs run without delay."""

    def __init__(self, cluster, folder):
        super().__init__(daemon=True)
        self.cluster, self.experts = cluster, folder / "experts/round0"
        self.status = start("status", "watch=true", "json=true", f"output={folder}")
        self.right, self.since, self.wrong = {}, {}, {}
        self.held, self.samples, self.error = {}, 0, None
        self.last, self.largest_gap = None, 0.0  # between two lines, after the first

    def run(self):
        try:
            for line in self.status.stdout:
                now, living, jobs = time.monotonic(), self.living(), self.cluster.jobs()
                self.compare(json.loads(line), living, jobs, now)
                self.release({job for job, (_, reason) in jobs.items() if reason == "BeginTime"})
                self.samples += 1
                self.largest_gap = max(self.largest_gap, now - (self.last or now))
                self.last = now
        except Exception as error:
            self.error = error
            raise

    def compare(self, found, living, jobs, now):
        for model, said, job in ((row["model"], row["state"], row["job"]) for row in found):
            lives, known = model in living, jobs.get(job, ("gone",))[0] if jobs else None
            if is_so(said, lives=lives, job=known):
                self.right[model] = now
                self.since.pop(model, None)
                continue
            # Wrong from the sample before on, which on a busy machine may be longer ago than a second.
            since = self.since.setdefault(model, max(self.right.get(model, now), now - 1))
            if now - since > WRONG_SECONDS:
                self.wrong[model] = (said, lives, known, now - since)

    def living(self):
        """The models that some process trains."""
        folder = re.escape(str(self.experts))
        return {Path(command.split()[-1]).name for command in commands(f"-m xelm_nemo.expert {folder}/")}

    def release(self, held):
        now = time.monotonic()
        self.held = {job: self.held.get(job, now) for job in held}
        for job, since in self.held.items():
            if now - since > HOLD_SECONDS:
                words = ("scontrol", "update", f"JobId={job}", "StartTime=now")
                self.cluster.call("timeout", "3", *words, check=False)  # the controller may be down

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, kind, *_):
        died, silent = self.status.poll(), time.monotonic() - (self.last or 0.0)
        self.status.terminate()
        self.join()
        self.status.communicate()
        if kind is not None:
            return
        assert died is None, "the status command ended before it was told to"
        assert self.error is None and self.samples > 0 and self.wrong == {}
        late = max(self.largest_gap, silent)
        assert late < 2 * WRONG_SECONDS, "a busy machine may be late, not away"


def is_so(said, *, lives, job):
    """Whether a state is true of a model with or without a living process, and of its job as SLURM has it."""
    if said == "finished":  # a process whose model is whole may take a while to end
        return True
    if said == "running" or lives:  # one that says nothing, or has yet to say something, is no other's
        return lives and said in ("running", "starting", "silent")
    if job is None or said == "waiting":
        return True
    if said in ("starting", "silent"):
        return job in ("RUNNING", "COMPLETING", "CONFIGURING")
    return (said == "pending") == (job in ACTIVE)


def test_stages_before_training_run_as_jobs_in_order(cluster, folder):
    code, said = command("branch", folder, *SETTINGS)
    assert code == 0, said
    assert (folder / "seed_model/model/manifest.json").is_file()
    shown = cluster.call("squeue", "-h", "-t", "all", "-o", "%j %T").splitlines()
    assert {"run-cluster COMPLETED", "run-shard COMPLETED"} < set(shown)
    assert "--dependency=afterok:1\n" in next(folder.glob("launch/*/2_submission.sh")).read_text()


def test_job_out_of_memory_fails_with_that_reason(cluster, folder):
    code, said = command(
        *("train", folder, *SETTINGS, ALONE, f"training.train_clusters=[{STARVED}]"),
        *("+launch.slurm.sbatch.mem=150M", "launch.slurm.max_crashes=0"),
    )
    assert code == 2
    assert "OUT_OF_MEMORY" in said or "SIGKILL" in said, said


class Reserve:
    """Experts that SLURM holds until a fault wants one: those that run are through within half a minute."""

    def __init__(self, cluster, folder):
        self.cluster, self.folder = cluster, folder
        self.unmet = [number for number in range(EXPERTS) if number != STUBBORN]
        wait_for(lambda: f"expert{EXPERTS - 1}" in recorded(open_run(folder)), 300, "no expert is submitted")
        jobs = recorded(open_run(folder))
        self.held = [jobs[f"expert{number}"]["job"] for number in self.unmet[PARALLEL:]]
        cluster.call("scontrol", "hold", ",".join(self.held))

    def take(self):
        """Number and state of an expert that trains and that no fault has met; now one does."""
        number, state = one_that_trains(self.folder, self.unmet, meanwhile=self.top_up)
        self.unmet.remove(number)
        return number, state

    def top_up(self):
        """Have one more begin when too few are under way that no fault has met; the last ones singly."""
        begun = self.unmet[: len(self.unmet) - len(self.held)]
        under_way = sum(not has_finished(self.folder, number) for number in begun)
        if self.held and under_way < (2 if len(self.held) > len(FAULTS) else 1):
            self.cluster.call("scontrol", "release", self.held.pop(0))

    def empty(self):
        """Have all begin; also those that a controller, which forgets its last seconds, holds again."""

        def none_is_held():
            jobs = self.cluster.jobs()
            held = [job for job, (_, reason) in jobs.items() if reason == "JobHeldAdmin"]
            for job in held:
                self.cluster.call("scontrol", "release", job, check=False)
            return jobs and not held

        wait_for(none_is_held, 60, "SLURM goes on holding experts")


def one_that_trains(folder, numbers, meanwhile=lambda: None):
    """Number and state of one of these experts in the midst of an attempt."""
    found = []

    def look():
        meanwhile()
        states = ((number, read_state(expert(folder, number))) for number in numbers)
        found.extend(one for one in states if one[1] and is_training(one[1]))
        return bool(found)

    wait_for(look, 300, "no expert trains that no fault has met")
    return found[0]


def is_training(state):
    return state.end is None and not state.is_silent and state.step > 0


def has_finished(folder, number):
    state = read_state(expert(folder, number))
    return bool(state and state.end and state.end.reason == "finished")


def send(pid, number):
    with contextlib.suppress(ProcessLookupError):  # it may have ended this moment
        os.kill(pid, number)


@contextlib.contextmanager
def halted_until_asked(pid):
    """Halt a process until what the block does has it asked to stop; else it might be through before."""
    send(pid, signal.SIGSTOP)
    # One that has yet to stop takes what comes now, and nothing is seen of that.
    wait_for(lambda: process_state(pid) in "TZ", 60, f"process {pid} does not halt")
    try:
        yield
        wait_for(lambda: not is_running(pid) or is_asked(pid), 120, f"SLURM does not signal process {pid}")
    finally:
        send(pid, signal.SIGCONT)


def is_asked(pid):
    """Whether a signal to stop waits for the process to go on, or is none to one that stops already."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        masks = re.findall(r"^(?:ShdPnd|SigIgn):\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.M)
        return any(int(mask, 16) >> (signal.SIGUSR2 - 1) & 1 for mask in masks)
    return False


def kill_a_rank(cluster, state):
    send(state.pid, signal.SIGKILL)


def signal_job(cluster, job, name="USR2"):
    """What a user types; for an array's element this SLURM delivers it, denies that, and would try again."""
    cluster.call("timeout", "3", "scancel", f"--signal={name}", job, check=False)


def ask_to_stop(cluster, state):
    with halted_until_asked(state.pid):
        signal_job(cluster, state.job)
    while is_running(state.pid):  # more of them, during the save and after it
        send(state.pid, signal.SIGUSR2)
        time.sleep(0.05)


def preempt(cluster, state):
    words = ("sbatch", "-p", "high", "-w", state.node, "--exclusive", "-o", "/dev/null", "--wrap", "sleep 2")
    with halted_until_asked(state.pid):
        cluster.call(*words)


def run_into_the_time_limit(cluster, state):
    with halted_until_asked(state.pid):
        # It may have ended this moment.
        cluster.call("scontrol", "update", f"JobId={state.job}", "TimeLimit=2", check=False)
    wait_for(lambda: not is_running(state.pid), 120, "a time limit does not end an expert")
    # If it was through after all, the fault is to meet another expert.
    cluster.call("scontrol", "update", f"JobId={state.job}", "TimeLimit=30", check=False)


def lose_the_node(cluster, state):
    send(state.pid, signal.SIGSTOP)  # or it might be through before its node is found
    cluster.kill_node(state.node)
    wait_for(lambda: "RUNNING" not in cluster.call("squeue", "-h", "-j", state.job, "-o", "%T"), 120, state)
    cluster.start_node(state.node)


def lose_the_controller(cluster):
    cluster.kill("slurmctld")
    time.sleep(4)
    cluster.start_controller()


# What befalls experts, and what their state says of it afterwards.
FAULTS = {
    kill_a_rank: "killed",
    ask_to_stop: "stopped",
    preempt: "preempted",
    lose_the_node: "lost",
    run_into_the_time_limit: "timed out",  # last: SLURM looks for it twice a minute
}


def befall(cluster, folder, fault, reserve):
    """Have a fault befall one expert after another, until one has not been quicker."""
    while True:
        number, state = reserve.take()
        fault(cluster, state)
        wait_for(
            lambda pid=state.pid: not is_running(pid), 120, f"{fault.__name__} does not end expert{number}"
        )
        time.sleep(1)
        if not has_finished(folder, number):
            return


def test_faults_stop_no_expert_but_the_one_that_always_fails(cluster, folder):
    shard = folder / f"tokens/cluster{STUBBORN}/train.bin"
    shutil.move(shard, shard.with_suffix(".away"))
    some = ("finish_with=[evaluate]", "evaluation.allow_missing=true", "launch.slurm.max_crashes=1")
    with started("train", *SETTINGS, *some, f"output={folder}") as process, Witness(cluster, folder):
        reserve = Reserve(cluster, folder)
        for fault in FAULTS:
            befall(cluster, folder, fault, reserve)
        reserve.take()  # as the others had it, while an expert trains
        lose_the_controller(cluster)
        reserve.empty()
        output, error = process.communicate(timeout=600)
    shutil.move(shard.with_suffix(".away"), shard)
    assert process.returncode == 2, output + error
    last = error.splitlines()[-1]
    assert f"expert{STUBBORN}: " in last and "xelm_nemo.retry" in last
    others = set(range(EXPERTS)) - {STUBBORN}
    assert [number for number in sorted(others) if f"expert{number}: " in last] == []
    assert all((expert(folder, number) / "model/manifest.json").is_file() for number in others)
    ended = [read_state(expert(folder, number)).ended for number in others]
    counts = {reason: sum(one.get(reason, 0) for one in ended) for reason in set().union(*ended)}
    assert set(counts) == set(FAULTS.values())
    assert evaluated_without(folder) == [f"expert{STUBBORN}"]


def evaluated_without(folder):
    return json.loads((folder / "evaluation/result.json").read_text())["missing_experts"]


def test_no_step_is_lost_where_a_signal_asked_to_stop(folder):
    stops = 0
    for number in set(range(EXPERTS)) - {STUBBORN}:
        log = (expert(folder, number) / "train.log").read_text()
        for stopped, went_on in re.findall(r"stopped at iteration (\d+).*?from iteration (\d+)", log, re.S):
            assert stopped == went_on
            stops += 1
    assert stops >= 3


def test_course_of_training_is_told_once_whatever_came_between(folder):
    for number in set(range(EXPERTS)) - {STUBBORN}:
        lines = read_metrics(expert(folder, number) / "metrics.jsonl")
        board = EventAccumulator(str(expert(folder, number) / "tensorboard")).Reload()
        logged = [line["iteration"] for line in lines if "loss" in line]
        expected = list(range(LOGGED_EVERY, ITERATIONS + 1, LOGGED_EVERY))
        assert logged == [event.step for event in board.Scalars("loss")] == expected


def test_retry_trains_the_missing_expert_alone(cluster, folder):
    before = {path: path.stat().st_mtime_ns for path in folder.glob("experts/round0/*/model/manifest.json")}
    with Witness(cluster, folder):
        code, said = command("retry", folder)
    assert code == 0, said
    after = {path: path.stat().st_mtime_ns for path in folder.glob("experts/round0/*/model/manifest.json")}
    assert len(before) == EXPERTS - 1 and len(after) == EXPERTS
    assert {path: after[path] for path in before} == before
    listed = json.loads((folder / "experts/round0/set.json").read_text())["experts"]
    assert len(listed) == EXPERTS
    assert evaluated_without(folder) == []


def test_weights_are_those_of_an_undisturbed_run(folder, tmp_path):
    jobs = [TrainJob.load(expert(folder, number)) for number in range(EXPERTS)]
    again = [dataclasses.replace(job, folder=str(tmp_path / job.name)) for job in jobs]
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(train, again))
    for number, job in enumerate(jobs):
        ours, theirs = (
            read_weights(place / "model") for place in (tmp_path / job.name, expert(folder, number))
        )
        assert ours.keys() == theirs.keys()
        assert all(ours[name].equal(theirs[name]) for name in ours), f"{job.name} differs"


def test_submission_returns_at_once_and_what_it_submitted_can_be_cancelled(cluster, folder):
    shutil.rmtree(expert(folder, 0) / "model")
    shutil.rmtree(expert(folder, 0) / "checkpoints")
    slow = "launch.slurm.setup=[sleep 60]"  # or the expert might be through before it is cancelled
    code, said = command("train", folder, *SETTINGS, ALONE, "wait=false", slow)
    assert code == 0, said
    job = recorded(open_run(folder))["expert0"]["job"]
    assert job in [line.split()[0] for line in said.splitlines() if line.strip()]  # beside what is logged
    code, said = command("cancel", folder, "expert0")
    assert code == 0, said
    wait_for(lambda: row_of(folder, 0).state == "cancelled", 20, row_of(folder, 0))
    assert row_of(folder, 1).state == "finished"


def row_of(folder, number):
    return next(row for row in rows(open_run(folder)) if row.model == f"expert{number}")


def test_one_expert_trains_on_two_nodes_and_stops_as_one(cluster, folder, tmp_path):
    two = tmp_path / "two"
    shutil.copytree(folder, two, ignore=shutil.ignore_patterns("experts", "launch"))
    words = (ALONE, "parallel=dp2", "training.train_clusters=[2]", "launch.stop_signals=[USR1,USR2,TERM]")
    with started("train", *SETTINGS, *words, f"output={two}") as process:
        _, state = one_that_trains(two, [2])
        assert cluster.call("squeue", "-h", "-j", state.job, "-o", "%D").strip() == "2"
        with Witness(cluster, two):
            signal_job(cluster, state.job, "USR1")
            output, error = process.communicate(timeout=600)
    assert (expert(two, 2) / "model/manifest.json").is_file(), output + error
    assert read_state(expert(two, 2)).ended == {"stopped": 1}
    alone = dataclasses.replace(TrainJob.load(expert(two, 2)), folder=str(tmp_path / "alone"))
    alone.save()
    run_jobs([Job(alone.name, WORKER, tmp_path / "alone", num_ranks=2)], max_parallel=1, gpus=0)
    one, other = (read_weights(place / "model") for place in (tmp_path / "alone", expert(two, 2)))
    assert all(one[name].equal(other[name]) for name in one)
