import pytest
import torch

from xelm_kernels import cross_entropy_passes as passes
from xelm_kernels import fp8_products as fp8
from xelm_kernels import linear_cross_entropy as op

T, H, V, WORDS = 48, 32, 384, 300  # 84 rows of padding
SHAPES = [(16, 16), (48, 32), (144, 272)]  # smaller than a tile, odd, past a tile both ways
needs_triton = pytest.mark.skipif(
    not hasattr(fp8.triton, "cdiv"), reason="Triton has no build for this platform"
)


def dtype_of(device):
    """What FP8 takes there; the interpreter of a CPU rounds BF16 in its own way."""
    return torch.bfloat16 if device == "cuda" else torch.float32


def random_inputs(device):
    dtype = dtype_of(device)
    hidden = torch.randn(T, H, device=device).to(dtype).requires_grad_()
    weight = (torch.randn(V, H, device=device) * H**-0.5).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(WORDS, (T,), device=device)


# Triton's interpreter drops a carry where it rounds to FP8, so roundings are compared on a GPU.
@needs_triton
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("is_whole", [True, pytest.param(False, marks=pytest.mark.gpu)])
def test_kernel_quantises_as_torch_does_and_writes_both_ways(is_whole, shape, device):
    x = torch.randint(-8, 9, shape, device=device) if is_whole else torch.randn(shape, device=device)
    x = x.to(dtype_of(device))
    scale = torch.tensor(2.0, device=device) if is_whole else fp8.E4M3_MAX / x.float().abs().max()
    found, expected = fp8.launch_quantise(x, scale), fp8.quantise_plain(x, scale)
    for mine, torchs in zip(found, expected, strict=True):
        assert mine.float().equal(torchs.float())


def both_gradients(shape, device):
    """By the kernel and by torch, where the last three columns are padding."""
    (C, V), words = shape, shape[1] - 3
    logits = (4 * torch.randn(C, V, device=device)).to(dtype_of(device))
    target = torch.randint(words, (C,), device=device)
    grad = torch.rand(C, device=device) * fp8.GRADIENT_MAX
    moments = passes.moments_plain(logits, target, words)
    return [f(logits, target, moments, grad, words) for f in (fp8.launch_gradient, fp8.gradient_plain)]


@needs_triton
@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_kernel_writes_both_ways_and_nothing_for_padding(shape, device):
    mine, _ = both_gradients(shape, device)
    assert mine[0].float().t().equal(mine[1].float())
    assert mine[0].float()[:, :-3].any(1).all() and not mine[0].float()[:, -3:].any()


@needs_triton
@pytest.mark.gpu
@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_kernel_is_within_a_rounding_of_torch(shape, device):
    mine, torchs = both_gradients(shape, device)
    torch.testing.assert_close(mine[0].float(), torchs[0].float(), rtol=0.26, atol=1e-4)  # exp in another way
    assert (mine[0].float() == torchs[0].float()).float().mean() > 0.99


def relative(found, exact):
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("is_grad_known", [True, False])
@pytest.mark.parametrize("chunk_tokens", [16, 1000])
def test_loss_and_gradients_are_those_of_the_rounded_inputs(chunk_tokens, is_grad_known, device):
    hidden, weight, target = random_inputs(device)
    grad = torch.full((T,), 1 / T, device=device)
    options = {"vocab_size": WORDS, "chunk_tokens": chunk_tokens, "fp8": True}
    loss = op.linear_cross_entropy(hidden, weight, target, grad_T=grad if is_grad_known else None, **options)
    loss.backward(grad)
    rounded = [
        (matrix.rows_MN.double() * matrix.inverse.double()).requires_grad_()
        for matrix in (fp8.quantise(hidden.detach()), fp8.quantise(weight.detach()))
    ]
    exact = op.linear_cross_entropy_ref(*rounded, target, WORDS)
    exact.backward(grad.double())
    assert relative(loss.detach(), exact.detach()) < 2e-3
    # E5M2 keeps two bits: half a unit is an eighth of a number at most, less on average and in sums.
    assert relative(hidden.grad, rounded[0].grad) < 0.08
    assert relative(weight.grad, rounded[1].grad) < 0.08
    assert not weight.grad[WORDS:].any()


def test_small_gradients_keep_their_scale(device):
    hidden, weight, target = random_inputs(device)
    found = []
    for size in (1.0, 2.0**-20):
        main_grad, grad = torch.zeros(V, H, device=device), torch.full((T,), size, device=device)
        options = {"vocab_size": WORDS, "fp8": True, "main_grad_VH": main_grad, "grad_T": grad}
        op.linear_cross_entropy(hidden, weight, target, **options).backward(grad)
        found.append(main_grad / size)
    assert found[0].equal(found[1])


def test_sizes_that_fp8_cannot_multiply_are_refused(device):
    hidden, weight, target = random_inputs(device)
    with pytest.raises(ValueError, match=r"multiples of 16, not \{'T': 47\}; use fp8=False"):
        op.linear_cross_entropy(hidden[:47], weight, target[:47], fp8=True)
