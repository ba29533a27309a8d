import numpy as np
import pytest

from xelm_nemo.evaluation.bootstrap import bootstrap_perplexities, interval95


def resample(nats, tokens, seed=1, num_samples=400):
    return bootstrap_perplexities(np.array(nats), np.array(tokens), num_samples=num_samples, seed=seed)


def test_the_same_seed_gives_the_same_samples_and_another_seed_others():
    nats, tokens = [[1.0, 5.0, 2.0]], [3, 4, 5]
    assert np.array_equal(resample(nats, tokens), resample(nats, tokens))
    assert not np.array_equal(resample(nats, tokens), resample(nats, tokens, seed=2))


def test_documents_that_are_all_alike_leave_no_doubt():
    low, high = interval95(resample([[6.0] * 5], [3] * 5)[0])
    assert low == high == pytest.approx(np.exp(2))


def test_all_models_are_measured_on_the_same_documents():
    nats = np.random.default_rng(0).uniform(1, 9, 20)
    samples = resample([nats, nats + 0.5], np.ones(20, dtype=int))
    np.testing.assert_allclose(samples[1] / samples[0], np.exp(0.5))


def test_the_interval_is_as_wide_as_the_normal_law_says():
    nats = np.random.default_rng(0).normal(2, 0.5, 400)
    low, high = interval95(np.log(resample([nats], np.ones(400, dtype=int), num_samples=2000)[0]))
    half_width = 1.96 * nats.std() / np.sqrt(400)
    assert (high - low) / 2 == pytest.approx(half_width, rel=0.1)
    assert low < nats.mean() < high
