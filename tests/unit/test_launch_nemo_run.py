"""What NeMo-Run's adapter says where it cannot work; tests/nemo has what it gives where it can."""

import sys

import pytest

from xelm_nemo.config.compose import compose, to_yaml
from xelm_nemo.errors import ArtifactError, ConfigError, RunFolderError
from xelm_nemo.launch.config import LaunchConfig
from xelm_nemo.launch.job import Job
from xelm_nemo.launch.nemo_run import executor_and_task
from xelm_nemo.stages.nemo_run import nemo_run_jobs


def test_what_is_missing_is_named_with_what_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nemo_run", None)
    with pytest.raises(ConfigError, match="NeMo-Run is not installed; run `pip install"):
        executor_and_task(Job("expert0", "xelm_nemo.expert", tmp_path), LaunchConfig())


def test_folder_without_a_run_and_run_without_inputs_are_refused(tmp_path):
    with pytest.raises(RunFolderError, match="holds no run"):
        nemo_run_jobs(tmp_path)
    (tmp_path / "config.yaml").write_text(to_yaml(compose(["+experiment=udhr", f"output={tmp_path}"])))
    with pytest.raises(
        ArtifactError, match=r"not ready for dense, expert0.* `python -m xelm_nemo\.shard` and then"
    ):
        nemo_run_jobs(tmp_path)
