import pytest
import torch

from tests.helpers.numerics import MASKED_LANES, assert_as_accurate
from xelm_kernels import ensemble_mixture as op

# E, T, V: one, odd, power of two, past a block, past a slice
SHAPES = [(1, 1, 1), (2, 5, 257), (4, 3, 1024), (3, 7, 5000), (3, 2, 40_000)]
INF = float("inf")
pytestmark = MASKED_LANES


@pytest.fixture(autouse=True)
def triton():
    return pytest.importorskip("triton", reason="Triton has no build for this platform")


def plain(logits, log_w):
    log_p = torch.log_softmax(logits, -1)
    return torch.logsumexp(log_p + log_w.T[..., None].to(log_p), 0)


def random_inputs(E, T, V, device, dtype=torch.float32):
    logits = (4 * torch.randn(E, T, V, device=device)).to(dtype)
    return logits, torch.log_softmax(torch.randn(T, E, device=device), -1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("E, T, V", SHAPES)
def test_matches_definition(E, T, V, dtype, device):
    args = random_inputs(E, T, V, device, dtype)
    assert_as_accurate("mixture", op._launch(*args), plain(*args), op.ensemble_mixture_ref(*args))


@pytest.mark.parametrize("E, T, V", SHAPES)
def test_public_function_is_a_distribution_and_agrees_with_the_kernel(E, T, V, device):
    args = random_inputs(E, T, V, device)
    mixed = op.ensemble_mixture(*args)
    torch.testing.assert_close(mixed, op._launch(*args))
    torch.testing.assert_close(mixed.logsumexp(-1), torch.zeros(T, device=device), atol=1e-5, rtol=0)


@pytest.mark.parametrize("mix", [op._launch, op.ensemble_mixture])
def test_expert_without_weight_is_not_read(mix, device):
    logits, log_w = random_inputs(3, 4, 300, device)
    log_w[:, 1] = -INF
    others = mix(logits[[0, 2]], log_w[:, [0, 2]])
    logits[1] = float("nan")
    assert torch.equal(mix(logits, log_w), others)


def test_padding_columns_after_the_vocabulary_are_not_read(device):
    logits, log_w = random_inputs(3, 4, 70, device)
    expected = op.ensemble_mixture_ref(logits[..., :65], log_w).float()
    logits[..., 65:] = float("nan")
    torch.testing.assert_close(op._launch(logits, log_w, vocab_size=65), expected)
    torch.testing.assert_close(op.ensemble_mixture(logits, log_w, vocab_size=65), expected)


def test_tokens_that_every_expert_forbids_have_probability_0(device):
    logits, log_w = random_inputs(2, 3, 5000, device)
    logits[..., :4500] = -INF
    logits[0, :, 4600] = -INF  # forbidden by one expert alone
    for mixed in (op._launch(logits, log_w), op.ensemble_mixture(logits, log_w)):
        assert (mixed[:, :4500] == -INF).all()
        torch.testing.assert_close(mixed[:, 4500:], op.ensemble_mixture_ref(logits, log_w)[:, 4500:].float())


def test_an_expert_that_forbids_everything_gives_no_number(device):
    logits, log_w = random_inputs(2, 1, 65, device)
    logits[0] = -INF
    assert op._launch(logits, log_w).isnan().all()
    assert op.ensemble_mixture(logits, log_w).isnan().all()


def test_layout_in_memory_does_not_matter(device):
    logits, log_w = random_inputs(3, 5, 64, device)
    expected = op._launch(logits, log_w)
    tokens_first = logits.transpose(0, 1).contiguous().transpose(0, 1)
    vocabulary_first = logits.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert torch.equal(op._launch(tokens_first, log_w), expected)
    assert torch.equal(op._launch(vocabulary_first, log_w), expected)


@pytest.mark.gpu  # the interpreter would copy the 4 GiB
def test_expert_beyond_two_to_the_31_elements_is_read_from_its_own_place(device):
    stride = 2**28
    memory = torch.zeros(8 * stride + 64, dtype=torch.float16, device=device)
    logits = memory.as_strided((9, 1, 64), (stride, 64, 1))
    logits[8, 0, 5] = 10.0
    only_last = torch.full((1, 9), -INF, device=device)
    only_last[0, 8] = 0.0
    torch.testing.assert_close(op._launch(logits, only_last), torch.log_softmax(logits[8].float(), -1))


def test_repeated_runs_are_bit_equal(device):
    args = random_inputs(4, 6, 5000, device)
    assert torch.equal(op._launch(*args), op._launch(*args))


def test_no_tokens_give_an_empty_result(device):
    args = random_inputs(2, 0, 8, device)
    assert op._launch(*args).shape == op.ensemble_mixture(*args).shape == (0, 8)


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"ensemble_mixture: .* log_w must be \[3, 2\]; got \[2, 3\]"):
        op.ensemble_mixture(torch.zeros(2, 3, 4), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"vocab_size=5 does not fit .* from 1 to 4"):
        op.ensemble_mixture(torch.zeros(1, 1, 4), torch.zeros(1, 1), vocab_size=5)


def test_input_that_needs_a_gradient_is_refused():
    logits = torch.zeros(1, 1, 4, requires_grad=True)
    with pytest.raises(NotImplementedError, match=r"torch\.no_grad"):
        op.ensemble_mixture(logits, torch.zeros(1, 1))
