"""A made-up evaluation result, small enough to read."""

import math

from xelm_nemo.evaluation.result import Comparison, EvaluationResult, ModelResult, Score


def score(perplexity, num_tokens=1000):
    return Score(nats=math.log(perplexity) * num_tokens, num_tokens=num_tokens, num_bytes=4 * num_tokens)


def model(name, kind, overall, **by_language):
    languages = {lang: score(value, 500) for lang, value in by_language.items()}
    clusters = {0: score(overall + 1, 500), 1: score(overall + 2, 500)}
    return ModelResult(name, kind, score(overall), (overall - 1.5, overall + 1.5), languages, clusters)


def result(ensemble=20.0, dense=25.0, has_equal_tokens=True):
    """Two experts, two languages; dense=None leaves the dense model out."""
    models = [
        model("expert0", "expert", 30.0, de=18.0, en=50.0),
        model("expert1", "expert", 40.0, de=60.0, en=26.0),
    ]
    training_tokens = {"expert0": 1_000_000, "expert1": 1_000_000}
    if dense is not None:
        models.append(model("dense", "dense", dense, de=24.0, en=26.5))
        training_tokens["dense"] = 2_000_000 if has_equal_tokens else 3_000_000
    models.append(model("ensemble", "ensemble", ensemble, de=17.0, en=27.0))
    baseline = ("dense", dense) if dense is not None else ("expert0", 30.0)
    ratio = ensemble / baseline[1]
    return EvaluationResult(
        dataset="test",
        models=models,
        comparison=Comparison("ensemble", baseline[0], ratio, (ratio - 0.01, ratio + 0.02), has_equal_tokens),
        documents={"de": {0: 9, 1: 1}, "en": {0: 0, 1: 12}},
        num_documents=22,
        num_truncated=3,
        settings={"seq_length": 256, "router": {"temperature": 0.1, "rule": "upstream"}},
        training_tokens=training_tokens,
    )
