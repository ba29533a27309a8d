import pytest

from xelm_nemo.expert.config import OptimConfig, learning_rate


def test_linear_decay_reaches_zero_at_the_last_iteration():
    config = OptimConfig(lr=1e-4)
    rates = [learning_rate(config, iteration, 4) for iteration in range(5)]
    assert rates == pytest.approx([1e-4, 0.75e-4, 0.5e-4, 0.25e-4, 0.0])


def test_warm_up_rises_to_the_rate_before_the_decay():
    config = OptimConfig(lr=1.0, min_lr=0.2, lr_warmup_iters=2)
    rates = [learning_rate(config, iteration, 6) for iteration in range(7)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2])
