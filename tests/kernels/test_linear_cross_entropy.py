import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers.numerics import assert_as_accurate
from xelm_kernels import cross_entropy_passes as passes
from xelm_kernels import linear_cross_entropy as op

ROOT = Path(__file__).resolve().parents[2]
# Triton's interpreter rounds BF16 towards zero, so what is stored in it is compared on a GPU.
DTYPES = [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)]
T, H, V, WORDS = 20, 24, 384, 300  # 84 rows of padding
CHUNK = 8  # the last one is a part


@pytest.fixture(params=["torch", "kernels"])
def route(request, monkeypatch):
    """Both ways of the passes on this machine's device."""
    if request.param == "kernels":
        pytest.importorskip("triton", reason="Triton has no build for this platform")
        monkeypatch.setattr(passes, "moments", passes.launch_moments)
        monkeypatch.setattr(passes, "logits_to_gradient", passes.launch_gradient)
    else:
        monkeypatch.setattr(passes, "moments", passes.moments_plain)
        monkeypatch.setattr(passes, "logits_to_gradient", passes.gradient_plain)


def random_inputs(device, dtype=torch.float32):
    hidden = torch.randn(T, H, device=device).to(dtype).requires_grad_()
    weight = torch.randn(V, H, device=device).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(WORDS, (T,), device=device)


def plain(hidden, weight, target, vocab_size):
    logits = hidden @ weight[:vocab_size].t()
    return torch.nn.functional.cross_entropy(logits.float(), target, reduction="none")


def loss_and_gradients(function, inputs, grad, **options):
    """The losses, and what `grad` for them gives hidden and weight; main_grad is counted as weight's."""
    hidden, weight, target = inputs
    hidden.grad = weight.grad = None
    loss = function(hidden, weight, target, vocab_size=WORDS, **options)
    loss.backward(grad.to(loss.dtype))
    main_grad = options.get("main_grad_VH")
    return loss.detach(), hidden.grad, weight.grad if main_grad is None else main_grad


def options_of(mode, grad, device):
    return {
        "any_grad": {},
        "known_grad": {"grad_T": grad},
        "any_grad_in_main_grad": {"main_grad_VH": torch.zeros(V, H, device=device)},
        "known_grad_in_main_grad": {"grad_T": grad, "main_grad_VH": torch.zeros(V, H, device=device)},
    }[mode]


MODES = ["any_grad", "known_grad", "any_grad_in_main_grad", "known_grad_in_main_grad"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("chunk_tokens", [CHUNK, 1000])
@pytest.mark.parametrize("mode", MODES)
def test_loss_and_gradients_are_as_accurate_as_plain_torch(route, mode, chunk_tokens, dtype, device):
    inputs, grad = random_inputs(device, dtype), torch.rand(T, device=device)
    by_torch = loss_and_gradients(plain, inputs, grad)
    options = options_of(mode, grad, device) | {"chunk_tokens": chunk_tokens}
    found = loss_and_gradients(op.linear_cross_entropy, inputs, grad, **options)
    # Gradients arrive in the dtype of the inputs; so the truth has inputs in float64.
    wide = [x.detach().double().requires_grad_() for x in inputs[:2]]
    truth = loss_and_gradients(op.linear_cross_entropy_ref, (*wide, inputs[2]), grad)
    for name, actual, expected, exact in zip(
        ("loss", "hidden", "weight"), found, by_torch, truth, strict=True
    ):
        assert_as_accurate(name, actual, expected, exact)


def test_padding_has_no_gradient(route, device):
    inputs, grad = random_inputs(device), torch.ones(T, device=device)
    _, _, weight_grad = loss_and_gradients(op.linear_cross_entropy, inputs, grad)
    assert not weight_grad[WORDS:].any() and weight_grad[:WORDS].any(1).all()


def test_hand_written_backward_passes_gradcheck():
    hidden, weight = (torch.randn(n, 3, dtype=torch.float64, requires_grad=True) for n in (5, 8))
    target, grad = torch.randint(7, (5,)), torch.rand(5, dtype=torch.float64)
    options = {"vocab_size": 7, "chunk_tokens": 2}
    assert torch.autograd.gradcheck(
        lambda h, w: op.linear_cross_entropy(h, w, target, **options), (hidden, weight)
    )
    any_grad, known = (
        torch.autograd.grad(
            op.linear_cross_entropy(hidden, weight, target, **options, **more), (hidden, weight), grad
        )
        for more in ({}, {"grad_T": grad})
    )
    torch.testing.assert_close(known, any_grad)


def test_gradient_adds_to_what_is_in_main_grad(route, device):
    inputs, grad = random_inputs(device, torch.float16), torch.rand(T, device=device)
    once, twice = torch.zeros(V, H, device=device), torch.zeros(V, H, device=device)
    for main_grad in (once, twice, twice):
        loss_and_gradients(op.linear_cross_entropy, inputs, grad, grad_T=grad, main_grad_VH=main_grad)
    assert inputs[1].grad is None
    torch.testing.assert_close(twice, 2 * once)


def test_nothing_is_added_to_main_grad_where_no_gradient_is_wanted(device):
    hidden, weight, target = random_inputs(device)
    main_grad = torch.zeros(V, H, device=device)
    options = {"vocab_size": WORDS, "grad_T": torch.ones(T, device=device), "main_grad_VH": main_grad}
    with torch.no_grad():
        evaluated = op.linear_cross_entropy(hidden, weight, target, **options)
    frozen = op.linear_cross_entropy(hidden, weight.detach(), target, **options)
    assert not main_grad.any() and not evaluated.requires_grad
    assert torch.equal(evaluated, frozen)
    frozen.sum().backward()
    assert hidden.grad.any()


def test_hidden_states_without_gradient_train_the_head_alone(device):
    hidden, weight, target = random_inputs(device)
    for options in ({}, {"grad_T": torch.ones(T, device=device)}):
        weight.grad = None
        op.linear_cross_entropy(hidden.detach(), weight, target, vocab_size=WORDS, **options).sum().backward()
        assert weight.grad.any()


@pytest.mark.parametrize("num_ranks", [2, 4])  # of four ranks the last has padding alone
def test_ranks_together_are_one(route, num_ranks, device):
    hidden, weight, target = random_inputs(device)
    target = target % 200
    logits = hidden.detach() @ weight.detach().t()
    width = V // num_ranks
    per_rank = [
        passes.moments(part.contiguous(), target - rank * width, min(max(200 - rank * width, 0), width))
        for rank, part in enumerate(logits.split(width, dim=1))
    ]
    whole = passes.moments(logits, target, 200)
    torch.testing.assert_close(op.join_ranks(torch.stack(per_rank)), whole)


def test_repeated_runs_are_bit_equal(route, device):
    inputs, grad = random_inputs(device), torch.rand(T, device=device)
    runs = [loss_and_gradients(op.linear_cross_entropy, inputs, grad, chunk_tokens=CHUNK) for _ in range(2)]
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


def test_no_tokens_give_an_empty_result_and_no_gradient(device):
    hidden, weight, target = random_inputs(device)
    loss = op.linear_cross_entropy(hidden[:0], weight, target[:0])
    loss.sum().backward()
    assert loss.shape == (0,) and not weight.grad.any()


@pytest.mark.parametrize(
    "num_tokens, row_bytes, expected",
    [(8192, 2**19, 1536), (8192, 2**10, 8192), (5000, 2**19, 1280), (300, 2**30, 256), (1, 8, 256)],
)
def test_chunks_are_equal_multiples_of_256_about_the_budget(num_tokens, row_bytes, expected):
    hidden = torch.empty(num_tokens, 1, dtype=torch.float16, device="meta")
    weight = torch.empty(row_bytes // 2, 1, dtype=torch.float16, device="meta")
    assert op._chunk_tokens(hidden, weight) == expected


def test_another_gradient_than_the_known_one_is_refused(device):
    hidden, weight, target = random_inputs(device)
    loss = op.linear_cross_entropy(
        hidden, weight, target, vocab_size=WORDS, grad_T=torch.ones(T, device=device)
    )
    if device == "cuda":
        loss.mean().backward()
        assert hidden.grad.isnan().all() and weight.grad.isnan().all()
    else:
        with pytest.raises(ValueError, match="another gradient than grad_T"):
            loss.mean().backward()


@pytest.mark.parametrize("outside", [-1, WORDS])
def test_target_outside_the_vocabulary_is_named_on_a_cpu(outside):
    hidden, weight, target = random_inputs("cpu")
    target[1] = outside
    with pytest.raises(ValueError, match=rf"target\[1\]={outside} is outside .* from 0 to {WORDS - 1}"):
        op.linear_cross_entropy(hidden, weight, target, vocab_size=WORDS)


@pytest.mark.parametrize("outside", [-1, WORDS])
def test_target_outside_the_vocabulary_is_nan_where_nothing_can_be_raised(
    route, outside, device, monkeypatch
):
    monkeypatch.setattr(op, "_check_target", lambda *_: None)
    hidden, weight, target = random_inputs(device)
    target[1] = outside
    loss = op.linear_cross_entropy(hidden, weight, target, vocab_size=WORDS)
    loss.sum().backward()
    for rows in (loss[:, None], hidden.grad):
        assert rows.isnan().any(1).nonzero().flatten().tolist() == [1]


def test_shape_mismatch_names_every_shape():
    with pytest.raises(
        ValueError, match=r"must be \[V, 3\], .* got weight \[4, 2\], target \[2\], grad \[1\]"
    ):
        op.linear_cross_entropy(
            torch.zeros(2, 3), torch.zeros(4, 2), torch.zeros(2, dtype=torch.long), grad_T=torch.zeros(1)
        )


def test_dtypes_that_do_not_fit_are_named():
    hidden, weight, target = torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(2, dtype=torch.long)
    with pytest.raises(ValueError, match=r"hidden is torch.float32, weight torch.bfloat16"):
        op.linear_cross_entropy(hidden, weight.bfloat16(), target)
    with pytest.raises(ValueError, match=r"main_grad is torch.bfloat16; give one in float32"):
        op.linear_cross_entropy(hidden, weight, target, main_grad_VH=weight.bfloat16())


def test_cpu_result_does_not_need_triton():
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch\n"
        "from xelm_kernels.linear_cross_entropy import linear_cross_entropy\n"
        "hidden = torch.ones(2, 3, requires_grad=True)\n"
        "linear_cross_entropy(hidden, torch.ones(4, 3), torch.zeros(2, dtype=torch.long)).sum().backward()\n"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
