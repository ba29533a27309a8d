import os

import pytest

from tests.helpers.slurm_cluster import Cluster, missing


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    assert missing() is None, missing()
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    cluster.start()
    os.environ["SLURM_CONF"] = str(cluster.conf)
    yield cluster
    cluster.stop()
    del os.environ["SLURM_CONF"]
