"""Where the gradient of the head's weight goes, and what Megatron is told about it."""

import pytest
import torch

from xelm_nemo import parallel
from xelm_nemo.model.head import head_loss

S, B, H, V, WORDS = 6, 2, 8, 32, 30


@pytest.fixture
def tp_group():
    from megatron.core import parallel_state

    with parallel.model_parallel(alone=True):
        yield parallel_state.get_tensor_model_parallel_group()


def weight_with_main_grad(dtype, **marks):
    weight = torch.nn.Parameter(torch.randn(V, H).to(dtype))
    weight.main_grad = torch.zeros(V, H)
    weight.grad_added_to_main_grad = False
    for name, mark in marks.items():
        setattr(weight, name, mark)
    return weight


def train_once(weight, tp_group, *, is_grad_known, is_tied=False):
    """The loss of one step on the mean over all tokens, and the gradient of the hidden states."""
    torch.manual_seed(0)
    hidden = torch.randn(S, B, H).to(weight.dtype).requires_grad_()
    labels = torch.randint(WORDS, (B, S))
    grad = torch.full((B, S), 1 / (B * S)) if is_grad_known else None
    layout = {"tp_group": tp_group, "sequence_parallel": False, "is_tied": is_tied}
    loss = head_loss(hidden, weight, labels, vocab_size=WORDS, grad_BS=grad, **layout)
    loss.mean().backward()
    logits = (hidden.detach() @ weight.detach()[:WORDS].t()).float()
    expected = torch.nn.functional.cross_entropy(logits.permute(1, 2, 0), labels, reduction="none")
    torch.testing.assert_close(loss.detach(), expected)
    return hidden.grad


@pytest.mark.parametrize("is_grad_known", [True, False])
def test_tied_bf16_weight_leaves_autograd_to_the_embedding(tp_group, is_grad_known):
    weight = weight_with_main_grad(torch.bfloat16)
    train_once(weight, tp_group, is_grad_known=is_grad_known, is_tied=True)
    assert weight.grad is None and not weight.grad_added_to_main_grad
    assert weight.main_grad[:WORDS].any(1).all() and not weight.main_grad[WORDS:].any()


@pytest.mark.parametrize("is_grad_known", [True, False])
def test_bf16_weight_of_its_own_brings_megatron_a_gradient_that_is_not_added(tp_group, is_grad_known):
    weight = weight_with_main_grad(torch.bfloat16)
    train_once(weight, tp_group, is_grad_known=is_grad_known)
    assert weight.grad.shape == weight.shape and weight.grad_added_to_main_grad
    assert weight.main_grad[:WORDS].any(1).all()


def test_float32_weight_has_its_gradient_from_autograd(tp_group):
    weight = weight_with_main_grad(torch.float32)
    train_once(weight, tp_group, is_grad_known=True)
    assert weight.grad[:WORDS].any(1).all()
    assert not weight.main_grad.any() and not weight.grad_added_to_main_grad


def test_gradient_that_is_known_changes_no_bit(tp_group):
    found = []
    for is_grad_known in (True, False):
        torch.manual_seed(1)
        weight = weight_with_main_grad(torch.bfloat16)
        found.append((train_once(weight, tp_group, is_grad_known=is_grad_known), weight.main_grad))
    assert all(torch.equal(known, any_grad) for known, any_grad in zip(*found, strict=True))
