import pytest
import torch

from tests.helpers.numerics import assert_as_accurate
from xelm_kernels import cross_entropy_passes as passes

SHAPES = [(1, 1), (5, 257), (3, 1024), (4, 9000)]  # C, V: one, odd, power of two, past a block of each kernel
INF = float("inf")
# Triton's interpreter rounds BF16 towards zero, so what is stored in it is compared on a GPU.
STORED = [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)]


@pytest.fixture(autouse=True)
def triton():
    return pytest.importorskip("triton", reason="Triton has no build for this platform")


def random_chunk(C, V, device, dtype=torch.float32, num_words=None):
    logits = (4 * torch.randn(C, V, device=device)).to(dtype)
    target = torch.randint(num_words or V, (C,), device=device)
    return logits, target, torch.rand(C, device=device) / C


def plain_gradient(logits, target, grad):
    p = torch.softmax(logits, -1)
    return (p - torch.nn.functional.one_hot(target, logits.shape[1])) * grad[:, None].to(p.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("C, V", SHAPES)
def test_moments_give_the_loss(C, V, dtype, device):
    logits, target, _ = random_chunk(C, V, device, dtype)
    found = passes.launch_moments(logits, target, V)
    truth, plain = (
        torch.nn.functional.cross_entropy(x, target, reduction="none") for x in (logits.double(), logits)
    )
    assert_as_accurate("loss", found[1].log() - (found[2] - found[0]), plain, truth)
    torch.testing.assert_close(passes.moments_plain(logits, target, V), found)


@pytest.mark.parametrize("dtype", STORED, ids=str)
@pytest.mark.parametrize("C, V", SHAPES)
def test_gradient_takes_the_place_of_the_logits(C, V, dtype, device):
    logits, target, grad = random_chunk(C, V, device, dtype)
    truth = plain_gradient(logits.double(), target, grad)
    plain = plain_gradient(logits, target, grad)
    moments = passes.moments_plain(logits, target, V)
    by_torch = logits.clone()
    passes.launch_gradient(logits, target, moments, grad, V)
    passes.gradient_plain(by_torch, target, moments, grad, V)
    assert_as_accurate("gradient", logits, plain, truth)
    assert_as_accurate("gradient", by_torch, plain, truth)


def test_gradient_of_a_sure_word_does_not_drown_in_rounding(device):
    logits = torch.zeros(1, 300, device=device)
    logits[0, 7] = 18.0
    target = torch.tensor([7], device=device)
    expected = plain_gradient(logits.double(), target, torch.ones(1, device=device))[0, 7]
    moments = passes.launch_moments(logits, target, 300)
    passes.launch_gradient(logits, target, moments, torch.ones(1, device=device), 300)
    assert logits[0, 7].item() == pytest.approx(expected.item(), abs=5e-7)  # one ulp of 18 is 2e-6


@pytest.mark.parametrize("num_words", [1, 65, 4500])
def test_padding_is_not_read_and_its_gradient_is_zero(num_words, device):
    logits, target, grad = random_chunk(4, 4600, device, num_words=num_words)
    logits[:, num_words:] = float("nan")
    words = logits[:, :num_words].clone()
    moments = passes.launch_moments(logits, target, num_words)
    assert torch.equal(moments, passes.launch_moments(words, target, num_words))
    passes.launch_gradient(logits, target, moments, grad, num_words)
    passes.launch_gradient(words, target, moments, grad, num_words)
    assert torch.equal(logits[:, :num_words], words)
    assert torch.equal(logits[:, num_words:], torch.zeros_like(logits[:, num_words:]))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy under the interpreter
@pytest.mark.parametrize("route", ["launch_moments", "moments_plain"])
def test_rank_of_padding_alone_adds_nothing(route, device):
    logits, target, _ = random_chunk(3, 128, device)
    moments = getattr(passes, route)(logits, target - 500, 0)
    assert moments.tolist() == [[-INF] * 3, [0.0] * 3, [0.0] * 3]


@pytest.mark.parametrize("elsewhere", [-3, 65])
def test_target_of_another_rank_leaves_the_softmax(elsewhere, device):
    logits, _, grad = random_chunk(2, 65, device)
    target = torch.full((2,), elsewhere, device=device)
    moments = passes.launch_moments(logits, target, 65)
    assert moments[2].tolist() == [0.0, 0.0]
    expected = torch.softmax(logits, -1) * grad[:, None]
    by_torch = logits.clone()
    passes.launch_gradient(logits, target, moments, grad, 65)
    passes.gradient_plain(by_torch, target, moments, grad, 65)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(by_torch, expected)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy under the interpreter: -inf - -inf
def test_forbidden_words_leave_the_rest_a_distribution(device):
    logits, target, grad = random_chunk(2, 9000, device)
    logits[:, :8500] = -INF  # the whole first block of the kernel
    target = 8500 + target % 500
    truth = plain_gradient(logits.double(), target, grad)
    moments = passes.launch_moments(logits, target, 9000)
    passes.launch_gradient(logits, target, moments, grad, 9000)
    torch.testing.assert_close(logits, truth.float())


@pytest.mark.gpu  # the interpreter would copy the 5 GB
def test_row_beyond_two_to_the_31_elements_is_read_and_written_in_its_own_place(device):
    memory = torch.zeros(9, 2**28 + 64, dtype=torch.float16, device=device)
    logits = memory[:, :64]
    logits[8, 5] = 10.0
    target = torch.full((9,), 5, device=device)
    truth = plain_gradient(logits.double(), target, torch.ones(9, device=device))
    moments = passes.launch_moments(logits, target, 64)
    passes.launch_gradient(logits, target, moments, torch.ones(9, device=device), 64)
    torch.testing.assert_close(logits.double(), truth, atol=1e-3, rtol=1e-3)  # half precision
    assert not memory[:, 64:].any()
