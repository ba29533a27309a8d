"""What the job behind the experts makes of those that there are."""

import dataclasses

import pytest

from xelm_nemo.config.compose import compose
from xelm_nemo.errors import ArtifactError
from xelm_nemo.stages import batch
from xelm_nemo.stages.batch import make_verb
from xelm_nemo.stages.run import Run, settled


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Run a verb with only some experts finished: the stages that it makes."""

    def make(verb, finished, *words):
        words = ["+experiment=udhr", "dense.enabled=false", f"output={tmp_path / 'run'}", *words]
        run, stages = Run(settled(compose(words))), []
        monkeypatch.setattr(batch, "TRAIN", dataclasses.replace(batch.TRAIN, finish=lambda run: None))
        monkeypatch.setattr(batch, "stages_of", lambda *given: [here(stage) for stage in stages_of(*given)])
        monkeypatch.setattr(batch, "is_finished", lambda job: job.name in finished)
        monkeypatch.setattr(batch, "make", lambda run, some: stages.extend(stage.name for stage in some))
        make_verb(run, verb)
        return stages

    stages_of = batch.stages_of

    def here(stage):
        return batch.TRAIN if stage.name == "train" else stage

    return make


ALL, SOME = ("expert0", "expert1", "expert2", "expert3"), ("expert0", "expert2")


def test_verb_is_made_from_all_experts(made):
    assert made("evaluate", ALL)[-2:] == ["train", "evaluate"]


@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_missing_experts_are_named_and_nothing_is_made(made, verb):
    with pytest.raises(ArtifactError, match=r"lacks expert1, expert3; mend it, .*xelm_nemo\.retry"):
        made(verb, SOME)


@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_experts_that_there_are_can_be_evaluated_and_no_other_is_trained(made, verb):
    words = ("evaluation.allow_missing=true", "finish_with=[evaluate]")
    assert made(verb, SOME, *words) == ["evaluate"]


@pytest.mark.parametrize("finished, wanted", [((), "[evaluate]"), (SOME, "[]")])
def test_job_without_any_expert_and_one_that_is_not_to_evaluate_refuse_all_the_same(made, finished, wanted):
    with pytest.raises(ArtifactError, match=r"lacks (expert0, )?expert1"):
        made("train", finished, "evaluation.allow_missing=true", f"finish_with={wanted}")
