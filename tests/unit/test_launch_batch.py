"""Batch scripts, written where there is no SLURM, and what becomes of a job when its script ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from xelm_nemo.command import AGAIN, FENCED, USER_ERROR
from xelm_nemo.errors import ConfigError, LaunchError, Stopped
from xelm_nemo.launch import ended, slurm
from xelm_nemo.launch.batch import Batch, submit, text
from xelm_nemo.launch.config import LaunchConfig, SlurmConfig
from xelm_nemo.launch.ended import see_off
from xelm_nemo.launch.job import Job
from xelm_nemo.launch.state import State, attempt, next_attempt, read_state, write_state

ROOT = Path(__file__).resolve().parents[2]
EXPERTS = [Job(f"expert{k}", "xelm_nemo.expert", Path(f"/run/expert {k}"), num_ranks=4) for k in range(3)]


def script(jobs=EXPERTS, after="", is_stage=False, stop_signals=("USR2",), max_parallel=None, **settings):
    config = LaunchConfig(
        "slurm", max_parallel, stop_signals=list(stop_signals), slurm=SlurmConfig(**settings)
    )
    return text(Batch("run-experts", jobs, after, is_stage), config, Path("/run/launch")).splitlines()


def test_array_has_an_element_an_expert_and_as_many_at_once_as_allowed():
    lines = script(max_parallel=2)
    assert "#SBATCH --array=0-2%2" in lines
    assert "# 2: python -m xelm_nemo.expert '/run/expert 2'" in lines
    assert "folders=('/run/expert 0' '/run/expert 1' '/run/expert 2')" in lines


def test_resources_are_those_of_the_settings():
    lines = script(
        *(EXPERTS[:1], "afterok:12"),
        **{
            "partition": "gpu",
            "account": "a1",
            "qos": "long",
            "constraint": "h100",
            "time": 600,
            "mem_gb": 0,
        },
        **{"ranks_per_node": 4, "cpus_per_rank": 7, "grace_seconds": 33, "sbatch": {"mail-user": "me@x"}},
    )
    for option in (
        *("partition=gpu", "account=a1", "qos=long", "constraint=h100", "time=600", "mem=0G", "nodes=1"),
        *("ntasks-per-node=4", "cpus-per-task=7", "gpus-per-node=4", "signal=USR2@33", "requeue"),
        *("dependency=afterok:12", "kill-on-invalid-dep=yes", "mail-user=me@x", "job-name=run-experts"),
    ):
        assert f"#SBATCH --{option}" in lines
    assert not any("--array" in line for line in lines)


def test_model_with_more_ranks_than_a_node_takes_several_nodes():
    lines = script(ranks_per_node=2)
    assert {"#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=2", "#SBATCH --gpus-per-node=2"} <= set(lines)


def test_nodes_without_gpus_are_asked_for_none():
    assert not any("gpus" in line for line in script(gpus_per_rank=0))


def test_any_parameter_of_sbatch_may_be_set_anew_and_once_more_for_stages():
    settings = {"sbatch": {"cpus-per-task": "3", "nice": "10"}, "stages": {"partition": "cpu", "nice": "5"}}
    lines = script(**settings)
    assert [line for line in lines if "cpus-per-task" in line] == ["#SBATCH --cpus-per-task=3"]
    assert "#SBATCH --nice=10" in lines
    stage = script(
        [Job("cluster", "xelm_nemo.stages", Path("/run/launch/cluster"))], is_stage=True, **settings
    )
    assert {"#SBATCH --partition=cpu", "#SBATCH --nice=5"} <= set(stage)


def test_modules_containers_and_lines_of_ones_own_come_before_srun():
    lines = script(
        modules=["cuda/12.8"], setup=["ulimit -n 4096"], container="x.sqsh", container_mounts=["/a:/a", "/b"]
    )
    (srun,) = [line for line in lines if line.startswith("srun ")]
    assert lines.index("module load cuda/12.8") < lines.index("ulimit -n 4096") < lines.index(srun)
    for option in ("--kill-on-bad-exit=1", "--container-image=x.sqsh", "--container-mounts=/a:/a,/b"):
        assert option in srun


def test_first_stop_signal_is_the_one_that_slurm_sends():
    assert "#SBATCH --signal=USR1@120" in script(stop_signals=["USR1", "TERM"])


def test_script_of_one_stage_may_use_every_gpu_of_its_node():
    lines = script([Job("branch", "xelm_nemo.stages", Path("/f"))], is_stage=True)
    assert {"#SBATCH --ntasks-per-node=1", "#SBATCH --cpus-per-task=64", "#SBATCH --gpus-per-node=8"} <= set(
        lines
    )


def test_submission_without_slurm_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchError, match="no sbatch here; run it where SLURM is"):
        submit(Batch("run-experts", EXPERTS), LaunchConfig("slurm"), tmp_path)


FAKE_SBATCH = """#!/bin/sh
cp "$1" "{folder}/given.sh"
{ending}
"""


@pytest.fixture
def sbatch(tmp_path, monkeypatch):
    """Put an sbatch that keeps what it is given on the path."""

    def put(ending):
        for name in ("sbatch", "srun"):
            program = tmp_path / "bin" / name
            program.parent.mkdir(exist_ok=True)
            program.write_text(FAKE_SBATCH.format(folder=tmp_path, ending=ending))
            program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")

    return put


def test_jobs_are_known_by_slurms_names_and_the_script_shown_is_the_one_submitted(tmp_path, sbatch):
    sbatch("echo Submitted batch job 41")
    config, experts = LaunchConfig("slurm"), Batch("run-experts", EXPERTS)
    assert submit(experts, config, tmp_path / "launch") == ["41_0", "41_1", "41_2"]
    assert (tmp_path / "given.sh").read_text() == text(experts, config, tmp_path / "launch")
    assert submit(Batch("one", EXPERTS[:1]), config, tmp_path / "launch") == ["41"]


def test_refusal_of_sbatch_is_one_line(tmp_path, sbatch):
    sbatch("echo 'sbatch: error: invalid partition specified: gpu' >&2; exit 1")
    with pytest.raises(LaunchError, match=r"sbatch refused run-experts: .*invalid partition.*launch\.slurm"):
        submit(Batch("run-experts", EXPERTS), LaunchConfig("slurm"), tmp_path)


# --- The end of a job -------------------------------------------------------------------------------


@pytest.fixture
def requeued(monkeypatch):
    """Jobs that were put back into the queue."""
    jobs = []
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    monkeypatch.setattr(slurm, "requeue", lambda job: jobs.append(job) or True)
    return jobs


def ended_with(folder, error):
    with pytest.raises(type(error)), attempt(folder, lambda: "preempted"):
        raise error


def test_job_that_was_stopped_goes_back_into_the_queue(tmp_path, requeued):
    for _ in range(5):
        ended_with(tmp_path, Stopped("saved"))
        see_off(tmp_path, AGAIN, max_crashes=0)
    assert requeued == ["41"] * 5
    assert read_state(tmp_path).end.again


def test_job_that_crashes_goes_back_a_few_times(tmp_path, requeued):
    for _ in range(4):
        write_state(tmp_path, next_attempt(tmp_path))
        see_off(tmp_path, 137, max_crashes=2)
    assert requeued == ["41"] * 2
    end = read_state(tmp_path).end
    assert (end.reason, end.again) == ("killed", False)


def test_job_whose_user_has_to_mend_something_does_not_go_back(tmp_path, requeued):
    ended_with(tmp_path, ConfigError("tokenizer.path is not set"))
    see_off(tmp_path, USER_ERROR, max_crashes=2)
    assert requeued == []
    end = read_state(tmp_path).end
    assert (end.message, end.again) == ("tokenizer.path is not set", False)


def test_job_that_crashed_before_it_said_anything_is_recorded(tmp_path, requeued):
    see_off(tmp_path, 1, max_crashes=0)
    assert requeued == []
    assert read_state(tmp_path).end.reason == "failed"


def test_finished_job_does_not_go_back_whatever_its_other_ranks_did(tmp_path, requeued):
    with attempt(tmp_path):
        pass
    see_off(tmp_path, 137, max_crashes=2)
    assert requeued == [] and read_state(tmp_path).end.reason == "finished"


@pytest.mark.parametrize("code", [FENCED, 137])
def test_end_of_a_second_job_says_nothing_of_the_one_that_lives(tmp_path, requeued, monkeypatch, code):
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    alive = next_attempt(tmp_path)
    write_state(tmp_path, alive)
    monkeypatch.setenv("SLURMD_NODENAME", "n2")
    see_off(tmp_path, code, max_crashes=2)
    assert requeued == [] and read_state(tmp_path) == alive


def test_controller_that_is_away_for_a_while_is_asked_again(tmp_path, requeued, monkeypatch):
    answers = [False, False, True]
    monkeypatch.setattr(slurm, "requeue", lambda job: answers.pop(0))
    monkeypatch.setattr(ended, "_POLL_SECONDS", 0)
    write_state(tmp_path, next_attempt(tmp_path))
    see_off(tmp_path, 137, max_crashes=1)
    assert answers == [] and read_state(tmp_path).end.again


def test_controller_that_stays_away_leaves_a_job_that_waits_for_nothing(tmp_path, requeued, monkeypatch):
    monkeypatch.setattr(slurm, "requeue", lambda job: False)
    monkeypatch.setattr(ended, "_PATIENCE_SECONDS", -1)
    write_state(tmp_path, State(*(1, "41"), node=next_attempt(tmp_path).node))
    see_off(tmp_path, 137, max_crashes=1)
    assert read_state(tmp_path).end.again is False


def test_script_for_places_where_python_may_not_submit_runs_a_worker_and_records_its_end(
    tmp_path, monkeypatch
):
    srun = tmp_path / "bin/srun"
    srun.parent.mkdir()
    srun.write_text('#!/bin/sh\ntest "$1" = --kill-on-bad-exit=1 && shift && exec "$@"\n')
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", f"{srun.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{os.environ.get('PYTHONPATH', '')}")
    for name, value in {"ARRAY_JOB_ID": "41", "ARRAY_TASK_ID": "3", "JOB_ID": "44", "PROCID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    script = subprocess.run(
        ["bash", ROOT / "docs/experts.sbatch"], cwd=tmp_path, capture_output=True, text=True
    )
    folder = tmp_path / "runs/xelm16/experts/round0/expert3"
    assert script.returncode == USER_ERROR, script.stderr
    assert "SLURM job 41_3, restart 0" in (folder / "train.log").read_text()
    state = read_state(folder)
    assert state.job == "41_3" and state.end.reason == "failed" and state.end.again is False
    assert "job.json is missing" in state.end.message
