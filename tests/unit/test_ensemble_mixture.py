import math

import pytest
import torch

from xelm_nemo.ensemble.mixture import mixture_log_prob, target_log_prob
from xelm_nemo.router.weights import keep_top_k


def example(num_experts=3, num_tokens=5, vocab=7):
    logits = 3 * torch.randn(num_experts, num_tokens, vocab)
    target = torch.randint(vocab, (num_tokens,))
    log_p = torch.log_softmax(logits, -1).gather(-1, target.expand(num_experts, -1)[..., None])[..., 0]
    return logits, target, log_p, torch.log_softmax(torch.randn(num_tokens, num_experts), -1)


def test_the_mixture_is_the_weighted_sum_of_probabilities():
    _, _, log_p, log_w = example()
    expected = [
        math.log(sum(math.exp(log_w[t, e]) * math.exp(log_p[e, t]) for e in range(3))) for t in range(5)
    ]
    torch.testing.assert_close(mixture_log_prob(log_p, log_w), torch.tensor(expected))


def test_one_expert_is_the_plain_model_bit_for_bit():
    _, _, log_p, _ = example(num_experts=1)
    assert torch.equal(mixture_log_prob(log_p, torch.zeros(5, 1)), log_p[0])


def test_an_expert_without_weight_changes_nothing():
    log_p = torch.tensor([[-1.0, -2.0], [-math.inf, 0.0]])
    log_w = torch.tensor([[0.0, -math.inf], [0.0, -math.inf]])
    assert mixture_log_prob(log_p, log_w).tolist() == [-1.0, -2.0]


def test_improbable_tokens_do_not_underflow():
    log_p = torch.tensor([[-2000.0], [-2001.0]])
    half = torch.full((1, 2), math.log(0.5))
    expected = -2000 + math.log(0.5 * (1 + math.exp(-1)))
    assert mixture_log_prob(log_p, half).item() == pytest.approx(expected, rel=1e-6)


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"\[2, 5\].*\[2, 5\]"):
        mixture_log_prob(torch.zeros(2, 5), torch.zeros(2, 5))


@pytest.mark.parametrize("top_k", [None, 1, 2])
def test_mixing_logits_at_once_agrees_with_mixing_scores(top_k, device):
    logits, target, log_p, log_w = example()
    log_w = keep_top_k(log_w, top_k)
    at_once = target_log_prob(logits.to(device), log_w.to(device), target.to(device)).cpu()
    torch.testing.assert_close(at_once, mixture_log_prob(log_p, log_w), atol=1e-5, rtol=0)
