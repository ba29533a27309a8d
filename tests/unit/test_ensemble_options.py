import math

import pytest
import torch

from xelm_nemo.ensemble.options import logit_average_log_probs, sequence_scores

NLL = [[3.0, 4.0], [5.0, 2.0], [6.0, 6.5]]  # of two options, by three experts
WEIGHTS = [0.5, 0.3, 0.2]
LOG_W = torch.tensor(WEIGHTS).log()


@pytest.mark.parametrize("top_k, kept", [(None, 3), (3, 3), (2, 2), (1, 1)])
def test_sequence_scores_mix_whole_options_and_renormalise_nothing(top_k, kept):
    expected = [math.log(sum(WEIGHTS[e] * math.exp(-NLL[e][o]) for e in range(kept))) for o in range(2)]
    scores = sequence_scores(-torch.tensor(NLL), LOG_W, top_k)
    torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=0)


def test_improbable_options_do_not_underflow():
    scores = sequence_scores(torch.tensor([[-2000.0], [-2001.0]]), torch.tensor([0.5, 0.5]).log())
    assert scores.item() == pytest.approx(-2000 + math.log(0.5 * (1 + math.exp(-1))))


def slow_logit_average(logits, weights, target):
    expected = []
    for t, y in enumerate(target):
        mixed = [sum(w * z[t][v] for w, z in zip(weights, logits, strict=True)) for v in range(4)]
        expected.append(mixed[y] - math.log(sum(map(math.exp, mixed))))
    return expected


def averaged(logits, weights, target):
    log_p = logit_average_log_probs(logits, weights.log().expand(len(target), -1))
    return log_p.gather(-1, target[:, None])[:, 0]


@pytest.mark.parametrize("weights", [WEIGHTS, [1.0, 0.0, 0.0]])
def test_logit_average_is_the_slow_loops(weights):
    logits, target = 2 * torch.randn(3, 5, 4), torch.tensor([0, 3, 2, 1, 1])
    expected = slow_logit_average(logits.tolist(), weights, target.tolist())
    found = averaged(logits, torch.tensor(weights), target)
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_logit_average_leaves_an_expert_without_weight_out():
    logits, target = torch.randn(2, 3, 4), torch.tensor([0, 3, 2])
    alone = averaged(logits[:1], torch.ones(1), target)
    logits[1] = -math.inf
    torch.testing.assert_close(averaged(logits, torch.tensor([1.0, 0.0]), target), alone)
