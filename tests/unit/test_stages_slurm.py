"""What is submitted, what is made of its fate, and what the table says of it, without a SLURM."""

import dataclasses
import json
import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.helpers.submitted import record_batches, submit_all
from xelm_nemo import artifacts
from xelm_nemo.artifacts import Recipe
from xelm_nemo.config.compose import compose
from xelm_nemo.errors import ConfigError, LaunchError, RunFolderError
from xelm_nemo.launch.slurm import Queued
from xelm_nemo.launch.state import End, State, write_state
from xelm_nemo.stages import follow, pipeline, submit, verbs
from xelm_nemo.stages.batch import make_verb
from xelm_nemo.stages.claim import claim
from xelm_nemo.stages.follow import Followed, fate
from xelm_nemo.stages.jobs import expert_job, round_jobs
from xelm_nemo.stages.pipeline import stages_of
from xelm_nemo.stages.rows import row
from xelm_nemo.stages.run import Run, settled

PENDING, RUNNING = Queued("PENDING", "Priority", ""), Queued("RUNNING", "None", "n0")
HELD_BY_USER, HELD_BY_ADMIN = (Queued("PENDING", reason, "") for reason in ("JobHeldUser", "JobHeldAdmin"))
FAILED, NODE_FAIL = Queued("FAILED", "NonZeroExitCode", "n0"), Queued("NODE_FAIL", "NodeDown", "n1")


@pytest.fixture
def run(tmp_path):
    words = ["+experiment=udhr", "launch=slurm", "launch.slurm.gpus_per_rank=0", f"output={tmp_path / 'run'}"]
    run = Run(settled(compose(words)))
    run.folder.mkdir()
    claim(run)
    return run


@pytest.fixture
def sent(monkeypatch):
    return record_batches(monkeypatch)


def test_whole_run_is_one_graph(run, sent):
    records = submit_all(run)
    experts = ["dense", "expert0", "expert1", "expert2", "expert3"]
    assert sent == [
        ("cluster", ["cluster"], ""),
        ("shard", ["shard"], "afterok:41"),
        ("branch", ["branch"], "afterok:42"),
        ("experts", experts, "afterok:43"),
        ("train", ["train"], "afterany:44_0:44_1:44_2:44_3:44_4"),
    ]
    assert records["expert2"]["job"] == "44_3"


def test_dry_run_shows_every_script_and_touches_nothing(tmp_path, capsys):
    words = ["+experiment=udhr", "launch=slurm", "launch.slurm.partition=gpu", "dry_run=true"]
    pipeline.main("train", [*words, f"output={tmp_path / 'run'}"])
    shown = capsys.readouterr().out
    names = ["cluster", "shard", "branch", "experts", "train"]
    assert re.findall(r"--job-name=run-(\w+)", shown) == names
    assert re.findall(r"--dependency=(\w+):run-(\w+)\b", shown) == [
        *(("afterok", name) for name in names[:3]),
        ("afterany", "experts"),
    ]
    assert shown.count("#SBATCH --partition=gpu") == shown.count("--kill-on-bad-exit=1") == len(names)
    assert list(tmp_path.iterdir()) == []


def test_verb_before_training_submits_what_it_needs_and_no_more(run, sent):
    submit_all(run, "shard")
    assert [name for name, *_ in sent] == ["cluster", "shard"]


@pytest.fixture
def ready(run, monkeypatch):
    """The run with everything before training."""
    monkeypatch.setattr("xelm_nemo.stages.stage.Stage.is_current", lambda stage, run: stage.name != "train")
    for folder, kind in [(run.tokens, "tokens"), (run.seed_weights, "model"), (run.clusters, "clusters")]:
        with artifacts.build(folder, Recipe(kind, {})):
            pass
    return run


def finish(job):
    with artifacts.build(job.model_folder, job.recipe()):
        pass


def test_finished_expert_is_not_trained_again_and_one_under_way_is_waited_for(ready, sent):
    submit_all(ready)
    finish(expert_job(ready, 1))
    queued = {"41_0": PENDING, "41_1": FAILED, "41_3": RUNNING}  # dense, expert0, expert2
    records = submit_all(ready, queued=queued)
    assert sent[2:] == [
        ("experts", ["expert0", "expert3"], ""),
        ("train", ["train"], "afterany:41_0:41_3:43_0:43_1"),
    ]
    assert records["expert2"]["job"] == "41_3"


def test_what_waits_in_the_queue_is_not_submitted_again(run, sent):
    records = submit_all(run)
    sent.clear()
    queued = {record["job"]: PENDING for record in records.values()}
    assert submit_all(run, queued=queued) == records
    assert sent == []


def test_only_the_chosen_models_are_submitted(ready, sent):
    submit_all(ready, only=["expert3"])
    assert sent[0][1] == ["expert3"]


def test_jobs_are_written_where_their_workers_read_them(ready, sent):
    submit_all(ready)
    written = json.loads((ready.experts / "expert0/job.json").read_text())
    assert written["name"] == "expert0" and written["stop_signals"] == ["USR2"]


@pytest.mark.parametrize("has_tokens", [True, False])
def test_branch_writes_the_jobs_of_an_imported_seed_model_where_there_are_tokens(
    tmp_path, monkeypatch, has_tokens
):
    """`branch` alone converts a model; in a graph of jobs it is the last stage before the experts."""
    monkeypatch.setattr("xelm_nemo.stages.stage.Stage.is_current", lambda stage, run: True)
    run = Run(settled(compose(["+experiment=xelm4", f"output={tmp_path / 'run'}"])))
    if has_tokens:
        with artifacts.build(run.tokens, Recipe("tokens", {})):
            pass
    make_verb(run, "branch")
    assert (run.experts / "expert3/job.json").is_file() is has_tokens


def test_model_that_says_it_lives_is_not_started_twice_when_slurm_is_down(ready, sent):
    job = expert_job(ready, 0)
    write_state_of(job, state(job="7"))
    submit_all(ready)
    assert "expert0" not in sent[0][1]


def write_state_of(job, state):
    Path(job.folder).mkdir(parents=True, exist_ok=True)
    write_state(Path(job.folder), fresh(state))


# --- Stages whose files several jobs share ----------------------------------------------------------

SHARES = ["cluster-0-of-3", "cluster-1-of-3", "cluster-2-of-3"]
DONE = End("finished", 0)


@pytest.fixture
def shared(run):
    """The run with three jobs for the files of a stage."""
    slurm = dataclasses.replace(run.config.launch.slurm, file_jobs=3)
    launch = dataclasses.replace(run.config.launch, slurm=slurm)
    return Run(dataclasses.replace(run.config, launch=launch))


def test_files_are_shared_by_an_array_between_a_job_before_and_one_after(shared, sent):
    submit_all(shared)
    assert sent[:7] == [
        ("cluster-begin", ["cluster-begin"], ""),
        ("cluster-files", SHARES, "afterok:41"),
        ("cluster", ["cluster"], "afterok:42_0:42_1:42_2"),
        ("shard-begin", ["shard-begin"], "afterok:43"),
        ("shard-files", [f"shard-{k}-of-3" for k in range(3)], "afterok:44"),
        ("shard", ["shard"], "afterok:45_0:45_1:45_2"),
        ("branch", ["branch"], "afterok:46"),
    ]


def test_job_that_shares_is_told_which_part_is_its_own(shared):
    planned = submit.plan(shared, stages_of("cluster", shared.config), "cluster", Path("c.yaml"))
    ((begin,), shares, (last,)) = planned.before[-1]
    assert [job.arguments[3:] for job in (begin, *shares, last)] == [
        ("begin",), ("0/3",), ("1/3",), ("2/3",), (),
    ]  # fmt: skip
    assert [job.folder.name for job in shares] == SHARES


def ends(run, name, end, job):
    """Write what a job says of itself."""
    folder = run.folder / "launch" / name
    folder.mkdir(parents=True, exist_ok=True)
    write_state(folder, fresh(state(end, job=job)))


def again(shared, sent, queued):
    """What is submitted when the same command is run again."""
    sent.clear()
    records = submit_all(shared, "cluster", queued=queued)
    return list(sent), records


def test_nothing_is_submitted_while_the_shares_and_what_follows_are_under_way(shared, sent):
    submit_all(shared, "cluster")
    ends(shared, "cluster-begin", DONE, "41")
    ends(shared, SHARES[0], DONE, "42_0")
    queued = {"42_1": RUNNING, "42_2": PENDING, "43": PENDING}
    assert again(shared, sent, queued)[0] == []
    for number in (1, 2):
        ends(shared, SHARES[number], DONE, f"42_{number}")
    assert again(shared, sent, {"43": RUNNING})[0] == []


def test_failed_share_is_submitted_again_and_what_others_write_into_is_not_begun_anew(shared, sent):
    submit_all(shared, "cluster")
    ends(shared, "cluster-begin", DONE, "41")
    ends(shared, SHARES[0], DONE, "42_0")
    ends(shared, SHARES[1], End("failed", 1), "42_1")
    found, records = again(shared, sent, {"42_2": RUNNING})
    assert found == [
        ("cluster-files", [SHARES[1]], ""),
        ("cluster", ["cluster"], "afterok:41:42_2"),
    ]
    assert records[SHARES[0]]["job"] == "42_0"


def test_share_that_is_submitted_again_waits_for_a_begin_that_is_still_in_the_queue(shared, sent):
    submit_all(shared, "cluster")
    found, _ = again(shared, sent, {"41": PENDING, "42_1": PENDING, "42_2": PENDING})
    assert found == [
        ("cluster-files", [SHARES[0]], "afterok:41"),
        ("cluster", ["cluster"], "afterok:41:42_1:42_2"),  # the new share is the first job of this submission
    ]


def test_where_no_share_lives_all_begins_again_and_finds_what_is_done(shared, sent):
    submit_all(shared, "cluster")
    for number, end in enumerate([DONE, End("failed", 1), DONE]):
        ends(shared, SHARES[number], end, f"42_{number}")
    found, _ = again(shared, sent, {"43": PENDING})
    assert [name for name, *_ in found] == ["cluster-begin", "cluster-files", "cluster"]


def test_nobody_works_on_files_that_jobs_share_but_these_jobs(shared, sent):
    submit_all(shared, "cluster")
    here = ["+experiment=udhr", f"output={shared.folder}"]
    ends(shared, SHARES[1], None, "42_1")  # it lives
    with pytest.raises(RunFolderError, match=r"SLURM jobs 42_1 work on the files of .*xelm_nemo\.cancel"):
        pipeline.main("cluster", here)
    assert not (shared.folder / "clusterer").exists()
    ends(shared, SHARES[1], DONE, "42_1")
    submit.check_no_share_lives(shared)


@pytest.mark.parametrize("file_jobs", [1, 4])
def test_number_of_shares_cannot_change_while_some_are_under_way(shared, run, sent, file_jobs):
    submit_all(shared, "cluster")
    slurm = dataclasses.replace(run.config.launch.slurm, file_jobs=file_jobs)
    launch = dataclasses.replace(run.config.launch, slurm=slurm)
    other = Run(dataclasses.replace(run.config, launch=launch))
    with pytest.raises(
        LaunchError, match=r"file_jobs is not what it was when SLURM jobs 42_1 .*xelm_nemo\.cancel"
    ):
        submit_all(other, "cluster", queued={"42_1": RUNNING})


# --- The fate of a job ------------------------------------------------------------------------------


@pytest.fixture
def followed(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=1000.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(follow.time, "monotonic", clock.monotonic)
    return Followed("expert3", "41_3", tmp_path), clock


def state(end=None, *, job="41_3", age=0.0):
    return State(attempt=1, job=job, beat=-age, end=end)


def fresh(state):
    """The state with its beat counted from now."""
    return state and dataclasses.replace(state, beat=time.time() + state.beat)


@pytest.mark.parametrize(
    "said, queued",
    [
        (state(), {"41_3": RUNNING}),
        (state(), {}),  # it lives, whatever SLURM has forgotten
        (state(), None),
        (None, {"41_3": PENDING}),
        (None, {"41_3": HELD_BY_USER}),
        (state(age=60), {"41_3": HELD_BY_ADMIN}),
        (None, None),  # SLURM is down: nothing is known, nothing is concluded
        (state(End("preempted", 75, again=True)), {"41_3": PENDING}),
        (state(End("preempted", 75)), {"41_3": RUNNING}),  # its script has not yet put it back
        (state(End("preempted", 75)), None),
        (state(End("failed", 1, again=False), job="12"), {"41_3": PENDING}),  # of an earlier submission
        (state(age=60), {"41_3": PENDING}),  # its node was lost and SLURM has put it back
    ],
)
def test_job_that_may_yet_finish_is_waited_for(followed, said, queued):
    job, clock = followed
    for _ in range(3):
        assert fate(job, fresh(said), queued) is None
        clock.now += follow.SETTLE_SECONDS


@pytest.mark.parametrize("queued", [{}, None, {"41_3": RUNNING}])
def test_job_that_says_it_failed_has_failed_whatever_slurm_says(followed, queued):
    assert fate(followed[0], state(End("failed", 2, "mend x", again=False)), queued) == "mend x"


def test_lost_node_is_a_failure_once_slurm_keeps_saying_so(followed):
    job, clock = followed
    silent = fresh(state(age=60))
    assert fate(job, silent, {"41_3": NODE_FAIL}) is None
    clock.now += follow.SETTLE_SECONDS / 2
    assert fate(job, silent, {"41_3": PENDING}) is None  # put back after all
    clock.now += follow.SETTLE_SECONDS
    assert fate(job, silent, {"41_3": NODE_FAIL}) is None
    clock.now += follow.SETTLE_SECONDS
    assert fate(job, silent, {"41_3": NODE_FAIL}) == "SLURM job 41_3 is NODE_FAIL"


def test_job_that_nobody_knows_any_more_has_failed(followed):
    job, clock = followed
    assert fate(job, None, {}) is None
    clock.now += follow.SETTLE_SECONDS
    assert "no longer known" in fate(job, None, {})


def test_job_that_slurm_put_back_and_holds_is_let_go_but_none_that_people_hold(tmp_path, monkeypatch):
    """What a controller does with a job that it started twice."""
    held = Queued("PENDING", "launch failed requeued held", "")
    assert not HELD_BY_USER.is_held and not HELD_BY_ADMIN.is_held
    done, released = End("finished", 0), []

    def release(job):
        released.append(job)
        write_state(tmp_path, fresh(state(done)))
        return True

    monkeypatch.setattr(follow, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(follow, "_QUEUE_SECONDS", 0.02)
    monkeypatch.setattr(follow.slurm, "queue", lambda: {"41_3": held, "50": held})
    monkeypatch.setattr(follow.slurm, "release", release)
    follow.follow([Followed("expert3", "41_3", tmp_path)])
    assert set(released) == {"41_3"}


def test_job_that_slurm_holds_again_and_again_fails_with_its_reason(tmp_path, monkeypatch):
    held = Queued("PENDING", "launch failed requeued held", "")
    released = []
    monkeypatch.setattr(follow, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(follow, "_QUEUE_SECONDS", 0.02)
    monkeypatch.setattr(follow.slurm, "queue", lambda: {"41_3": held})
    monkeypatch.setattr(follow.slurm, "release", lambda job: not released.append(job))
    job = Followed("expert3", "41_3", tmp_path, holds=follow.MAX_RELEASES)
    assert fate(job, None, {"41_3": held}) is None  # the last release may not have come through yet
    with pytest.raises(LaunchError, match=r"expert3: SLURM holds job 41_3 .*launch failed requeued"):
        follow.follow([Followed("expert3", "41_3", tmp_path)])
    assert released == ["41_3"] * follow.MAX_RELEASES


def test_releases_of_a_job_that_lived_in_between_do_not_add_up():
    job = Followed("expert3", "41_3", Path("none"), holds=follow.MAX_RELEASES)
    assert fate(job, fresh(state(None)), {}) is None
    assert job.holds == 0


def test_jobs_that_failed_are_named_in_one_line_with_what_they_said(tmp_path, monkeypatch):
    monkeypatch.setattr(follow.slurm, "queue", dict)
    for name, end in {
        "expert1": End("failed", 2, "mend x.", again=False),
        "expert2": End("finished", 0),
    }.items():
        (tmp_path / name).mkdir()
        write_state(tmp_path / name, fresh(state(end, job=name)))
    with pytest.raises(LaunchError, match=r"^expert1: mend x\. The others have ended; "):
        follow.follow([Followed(name, name, tmp_path / name) for name in ("expert1", "expert2")])


def test_what_is_made_counts_for_more_than_what_is_said(followed):
    job, _ = followed
    job.is_done = lambda: True
    assert fate(job, state(End("killed", 137)), {"41_3": FAILED}) == ""


# --- The table --------------------------------------------------------------------------------------

RECORD = {"job": "41_3", "folder": "", "submitted": 0.0}


@pytest.mark.parametrize(
    "said, record, queued, word",
    [
        (None, None, None, "waiting"),
        (None, RECORD, None, "pending"),
        (None, RECORD, {"41_3": PENDING}, "pending"),
        (None, RECORD, {"41_3": HELD_BY_USER}, "pending"),
        (None, RECORD, {"41_3": RUNNING}, "starting"),
        (None, RECORD, {"41_3": FAILED}, "failed"),
        (state(), RECORD, {"41_3": RUNNING}, "running"),
        (state(), RECORD, None, "running"),
        (state(age=60), RECORD, None, "silent"),
        (state(age=60), None, None, "stopped"),
        (state(age=60), RECORD, {"41_3": RUNNING}, "silent"),
        (state(age=60), RECORD, {"41_3": PENDING}, "pending"),
        (state(age=60), RECORD, {"41_3": HELD_BY_ADMIN}, "pending"),
        (state(age=60), RECORD, {"41_3": NODE_FAIL}, "lost"),
        (state(End("killed", 137)), RECORD, {"41_3": RUNNING}, "starting"),
        (state(End("killed", 137, again=True)), RECORD, None, "pending"),
        (state(End("killed", 137)), RECORD, None, "failed"),
        (state(End("stopped", 75)), None, None, "stopped"),
        (state(End("failed", 1), job="12"), RECORD, {"41_3": PENDING}, "pending"),
        (None, RECORD | {"cancelled": 1.0}, {}, "cancelled"),
    ],
)
def test_state_of_a_model_from_its_files_and_slurm(run, said, record, queued, word):
    job = expert_job(run, 3)
    if said:
        write_state_of(job, said)
    assert row(job, record, queued).state == word


def test_row_says_how_often_and_why_a_model_was_started_again(run):
    job = expert_job(run, 0)
    end = End("failed", 1, "the loss is nan")
    ended = {"preempted": 2, "timed out": 1}
    write_state_of(job, State(*(4, "41_3", 3, "n2"), step=7, end=end, ended=ended))
    found = row(job, RECORD, None)
    assert (found.restarts, found.ended, found.reason, found.node) == (3, ended, "the loss is nan", "n2")
    assert found.step == 7


# --- cancel and retry -------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", [verbs.cancel, verbs.retry])
def test_name_that_is_no_models_is_refused_with_those_that_are(run, verb):
    with pytest.raises(ConfigError, match=r"expert9: no model of .*name some of .*expert0, expert1"):
        verb([f"output={run.folder}", "expert9"])


def test_cancel_of_what_is_not_in_the_queue_is_refused(run, monkeypatch):
    monkeypatch.setattr(verbs.slurm, "queue", lambda: None)
    with pytest.raises(ConfigError, match="no job of expert1 in SLURM's queue"):
        verbs.cancel([f"output={run.folder}", "expert1"])


def test_only_jobs_in_the_queue_are_cancelled_and_are_known_as_cancelled(ready, sent, monkeypatch):
    submit_all(ready)
    cancelled = []
    monkeypatch.setattr(verbs.slurm, "queue", lambda: {"41_1": PENDING, "41_2": FAILED, "41_3": RUNNING})
    monkeypatch.setattr(verbs.slurm, "cancel", lambda jobs: cancelled.extend(jobs) or True)
    verbs.cancel([f"output={ready.folder}"])
    assert cancelled == ["41_1", "41_3"]
    assert row(expert_job(ready, 0), submit.recorded(ready)["expert0"], None).state == "cancelled"


def test_retry_takes_up_the_run_as_it_was_started_with_other_resources(run, monkeypatch):
    seen = []
    monkeypatch.setattr(verbs, "run_on_slurm", lambda run, stages, verb, only: seen.append((run, only)))
    verbs.retry([f"output={run.folder}", "launch.slurm.mem_gb=64", "expert2"])
    ((again, only),) = seen
    assert again.config.launch.slurm.mem_gb == 64 and only == ["expert2"]
    assert [job.name for job in round_jobs(again)] == [job.name for job in round_jobs(run)]
