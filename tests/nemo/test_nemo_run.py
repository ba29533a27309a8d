"""Experts that NeMo-Run launches are those that this program launches."""

import io
import shutil

import pytest

from tests.helpers.commands import SMALL, run_well
from tests.helpers.weights import read_weights
from xelm_nemo.errors import ConfigError
from xelm_nemo.launch.config import LaunchConfig, SlurmConfig
from xelm_nemo.launch.job import Job
from xelm_nemo.launch.nemo_run import executor_and_task
from xelm_nemo.stages.nemo_run import nemo_run_jobs

pytestmark = pytest.mark.nemo
nemo_run = pytest.importorskip("nemo_run", reason="NeMo-Run is not installed: make test-nemo")

WORDS = [*SMALL, "dense.enabled=false", "finish_with=[]", "seed_model.train_iters=0"]


@pytest.fixture(scope="module")
def branched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    run_well("branch", *WORDS, f"output={folder}")
    return folder


def launch(folder, home):
    with nemo_run.Experiment("small", base_dir=str(home)) as experiment:
        for job in nemo_run_jobs(folder):
            experiment.add(job.task, executor=job.executor, name=job.name)
        experiment.run(sequential=True)


def weights(folder):
    return [read_weights(folder / f"experts/round0/expert{k}/model") for k in (0, 1)]


def test_experts_have_the_weights_of_a_run_of_our_own(branched, tmp_path):
    ours = tmp_path / "ours"
    shutil.copytree(branched, ours)
    run_well("train", *WORDS, f"output={ours}")
    launch(branched, tmp_path / "home")
    assert nemo_run_jobs(branched) == []
    for one, other in zip(weights(branched), weights(ours), strict=True):
        assert one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def test_batch_script_has_the_settings_of_the_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NEMORUN_HOME", str(tmp_path))
    monkeypatch.setattr("sys.stdin", io.StringIO())  # it runs mkdir, and passes on what is typed
    resources = SlurmConfig(
        partition="gpu", account="lab", time=1500, ranks_per_node=4, modules=["cuda"], sbatch={"nice": "3"}
    )
    job = Job("expert3", "xelm_nemo.expert", tmp_path / "expert3", num_ranks=8)
    executor, task = executor_and_task(job, LaunchConfig("slurm", slurm=resources))
    with nemo_run.Experiment("small", base_dir=str(tmp_path)) as experiment:
        experiment.add(task, executor=executor, name=job.name)
        experiment.dryrun()
    script = "".join(capsys.readouterr().out.split())  # as wide as the terminal
    wanted = ["partition=gpu", "account=lab", "time=1-01:00:00", "nodes=2", "ntasks-per-node=4", "nice=3"]
    assert [
        word for word in [*wanted, "gpus-per-node=4", "signal=USR2@120"] if f"--{word}" not in script
    ] == []
    assert "moduleloadcuda" in script
    assert f"-mxelm_nemo.launchrunxelm_nemo.expert{job.folder}" in script


def test_account_that_is_missing_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"launch\.slurm\.account is not set"):
        executor_and_task(Job("expert3", "xelm_nemo.expert", tmp_path), LaunchConfig("slurm"))
