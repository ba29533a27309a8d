import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers.numerics import MASKED_LANES, assert_as_accurate
from xelm_kernels import ensemble_log_prob as op

ROOT = Path(__file__).resolve().parents[2]
# E, T, V: one, odd, power of two, past a block, past a slice
SHAPES = [(1, 1, 1), (2, 5, 257), (4, 3, 1024), (3, 7, 5000), (3, 2, 40_000)]
INF = float("inf")
pytestmark = MASKED_LANES


@pytest.fixture(autouse=True)
def triton():
    return pytest.importorskip("triton", reason="Triton has no build for this platform")


def plain(logits, log_w, target):
    log_p = torch.log_softmax(logits, -1).gather(-1, target.expand(len(logits), -1)[..., None])[..., 0]
    return torch.logsumexp(log_p + log_w.to(log_p).T, 0)


def random_inputs(E, T, V, device, dtype=torch.float32):
    logits = (4 * torch.randn(E, T, V, device=device)).to(dtype)
    log_w = torch.log_softmax(torch.randn(T, E, device=device), -1)
    return logits, log_w, torch.randint(V, (T,), device=device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("E, T, V", SHAPES)
def test_matches_definition(E, T, V, dtype, device):
    args = random_inputs(E, T, V, device, dtype)
    assert_as_accurate("log_prob", op._launch(*args), plain(*args), op.ensemble_log_prob_ref(*args))


def test_expert_with_zero_weight_changes_nothing(device):
    logits, _, target = random_inputs(2, 3, 65, device)
    only_second = torch.tensor([[-INF, 0.0]] * 3, device=device)
    alone = torch.log_softmax(logits[1], -1).gather(-1, target[:, None])[:, 0]
    torch.testing.assert_close(op._launch(logits, only_second, target), alone)


def test_padding_columns_after_the_vocabulary_are_not_read(device):
    logits, log_w, target = random_inputs(3, 4, 70, device)
    expected = op.ensemble_log_prob_ref(logits[..., :65], log_w, target % 65).float()
    logits[..., 65:] = float("nan")
    args = logits, log_w, target % 65
    torch.testing.assert_close(op._launch(*args, vocab_size=65), expected)
    torch.testing.assert_close(op.ensemble_log_prob(*args, vocab_size=65), expected)


def test_forbidden_tokens_leave_the_rest_a_distribution(device):
    logits, log_w, target = random_inputs(2, 3, 5000, device)
    logits[..., :4500] = -INF  # the whole first block of the kernel
    allowed = 4500 + target % 500
    expected = op.ensemble_log_prob_ref(logits[..., 4500:], log_w, allowed - 4500).float()
    torch.testing.assert_close(op._launch(logits, log_w, allowed), expected)
    assert op._launch(logits, log_w, target % 4500).tolist() == [-INF] * 3


def test_target_forbidden_by_one_expert_counts_the_other_alone(device):
    logits, log_w, target = random_inputs(2, 3, 65, device)
    logits[0].scatter_(-1, target[:, None], -INF)
    other = torch.log_softmax(logits[1], -1).gather(-1, target[:, None])[:, 0] + log_w[:, 1]
    torch.testing.assert_close(op._launch(logits, log_w, target), other)


def test_layout_in_memory_does_not_matter(device):
    logits, log_w, target = random_inputs(3, 5, 64, device)
    expected = op._launch(logits, log_w, target)
    tokens_first = logits.transpose(0, 1).contiguous().transpose(0, 1)
    vocabulary_first = logits.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert torch.equal(op._launch(tokens_first, log_w, target), expected)
    assert torch.equal(op._launch(vocabulary_first, log_w, target), expected)


@pytest.mark.parametrize("mix", [op._launch, op.ensemble_log_prob])
def test_expert_without_weight_is_not_read(mix, device):
    logits, log_w, target = random_inputs(3, 4, 300, device)
    log_w[:, 1] = -INF
    others = mix(logits[[0, 2]], log_w[:, [0, 2]], target)
    logits[1] = float("nan")
    torch.testing.assert_close(mix(logits, log_w, target), others)


def test_a_logit_that_is_no_number_comes_out(device):
    logits, log_w, target = random_inputs(2, 3, 300, device)
    logits[0, 1, (target[1] + 1) % 300] = float("nan")
    assert op._launch(logits, log_w, target).isnan().tolist() == [False, True, False]


@pytest.mark.gpu  # the interpreter would copy the 4 GiB
def test_expert_beyond_two_to_the_31_elements_is_read_from_its_own_place(device):
    stride = 2**28
    memory = torch.zeros(8 * stride + 64, dtype=torch.float16, device=device)
    logits = memory.as_strided((9, 1, 64), (stride, 64, 1))
    logits[8, 0, 5] = 10.0
    only_last = torch.full((1, 9), -INF, device=device)
    only_last[0, 8] = 0.0
    target = torch.tensor([5], device=device)
    alone = torch.log_softmax(logits[8, 0].float(), -1)[5:6]
    torch.testing.assert_close(op._launch(logits, only_last, target), alone)


def test_repeated_runs_are_bit_equal(device):
    args = random_inputs(4, 6, 5000, device)
    assert torch.equal(op._launch(*args), op._launch(*args))


def test_no_tokens_give_an_empty_result(device):
    args = random_inputs(2, 0, 8, device)
    assert op._launch(*args).shape == op.ensemble_log_prob(*args).shape == (0,)


def test_public_function_agrees_with_the_kernel(device):
    args = random_inputs(3, 5, 300, device)
    torch.testing.assert_close(op.ensemble_log_prob(*args), op._launch(*args))


def test_shape_mismatch_names_every_shape():
    with pytest.raises(ValueError, match=r"log_w must be \[3, 2\] and target \[3\]; got \[2, 3\] and \[3\]"):
        op.ensemble_log_prob(torch.zeros(2, 3, 4), torch.zeros(2, 3), torch.zeros(3, dtype=torch.long))


@pytest.mark.parametrize("vocab_size", [0, 5])
def test_vocabulary_that_does_not_fit_the_logits_is_named(vocab_size):
    args = torch.zeros(1, 1, 4), torch.zeros(1, 1), torch.zeros(1, dtype=torch.long)
    with pytest.raises(ValueError, match=rf"vocab_size={vocab_size} does not fit .* from 1 to 4"):
        op.ensemble_log_prob(*args, vocab_size=vocab_size)


@pytest.mark.parametrize("outside", [-1, 3])
def test_target_outside_the_vocabulary_is_named_on_a_cpu(outside):
    args = torch.zeros(1, 2, 4), torch.zeros(2, 1), torch.tensor([0, outside])
    with pytest.raises(ValueError, match=rf"target\[1\]={outside} is outside .* from 0 to 2"):
        op.ensemble_log_prob(*args, vocab_size=3)


@pytest.mark.parametrize("outside", [-1, 3])
def test_target_outside_the_vocabulary_is_nan_from_the_kernel(outside, device):
    logits, log_w = torch.zeros(1, 2, 4, device=device), torch.zeros(2, 1, device=device)
    out = op._launch(logits, log_w, torch.tensor([0, outside], device=device), vocab_size=3)
    assert out.isnan().tolist() == [False, True]


def test_input_that_needs_a_gradient_is_refused():
    logits = torch.zeros(1, 1, 4, requires_grad=True)
    args = logits, torch.zeros(1, 1), torch.zeros(1, dtype=torch.long)
    with pytest.raises(NotImplementedError, match=r"torch\.no_grad"):
        op.ensemble_log_prob(*args)
    with torch.no_grad():
        op.ensemble_log_prob(*args)


def test_cpu_result_does_not_need_triton():
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch\n"
        "from xelm_kernels.ensemble_log_prob import ensemble_log_prob\n"
        "target = torch.zeros(3, dtype=torch.long)\n"
        "print(ensemble_log_prob(torch.zeros(2, 3, 4), torch.zeros(3, 2) - 2 ** 0.5, target).tolist())\n"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
