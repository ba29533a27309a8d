import pytest

from xelm_nemo.config.schema import RunConfig
from xelm_nemo.files import write_json
from xelm_nemo.stages.cluster import REPORT_JSON, language_experts
from xelm_nemo.stages.run import Run


@pytest.fixture
def experts_of(tmp_path):
    """The languages' experts where the clusters hold these numbers of documents by language."""

    def experts_of(*mixes):
        run = Run(RunConfig(output=str(tmp_path)))
        rows = [{"cluster": k, "languages": mix} for k, mix in enumerate(mixes)]
        write_json(run.clusters / REPORT_JSON, {"clusters": rows})
        return language_experts(run)

    return experts_of


def test_a_language_belongs_to_the_cluster_with_most_of_it(experts_of):
    assert experts_of({"de": 3, "en": 1}, {"en": 4, "de": 2}) == {"de": 0, "en": 1}


def test_of_two_equal_clusters_the_lower_has_the_language(experts_of):
    assert experts_of({"en": 2}, {"en": 2}) == {"en": 0}


def test_documents_without_a_language_have_no_expert_by_language(experts_of):
    assert experts_of({"?": 5, "en": 1}, {"?": 9}) == {"en": 0}
    assert experts_of({"?": 5}) == {}
