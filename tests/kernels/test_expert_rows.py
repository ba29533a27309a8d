import pytest
import torch

from tests.helpers.numerics import MASKED_LANES
from xelm_kernels import expert_rows as op

INF = float("inf")
pytestmark = MASKED_LANES


@pytest.fixture(autouse=True)
def triton():
    return pytest.importorskip("triton", reason="Triton has no build for this platform")


def random_inputs(E, T, V, device):
    log_w = torch.log_softmax(torch.randn(T, E, device=device), -1)
    log_w[0, -1] = -INF
    return 4 * torch.randn(E, T, V, device=device), log_w


@pytest.mark.parametrize("E, T, V", [(2, 5, 257), (4, 3, 1024), (3, 2, 40_000)])
def test_rows_are_those_of_the_definition(E, T, V, device):
    logits, log_w = random_inputs(E, T, V, device)
    target = torch.randint(V, (T,), device=device)
    target[-1] = V + 7  # on another rank
    for found, expected in zip(
        op.launch_expert_rows(logits, log_w, target), op.expert_rows_plain(logits, log_w, target), strict=True
    ):
        torch.testing.assert_close(found, expected)


def test_slices_do_not_depend_on_the_batch(device):
    logits, log_w = random_inputs(3, 6, 40_000, device)
    whole, _ = op.launch_expert_rows(logits, log_w)
    halves = [op.launch_expert_rows(logits[:, part], log_w[part])[0] for part in (slice(0, 3), slice(3, 6))]
    assert torch.equal(torch.cat(halves, 1), whole)


@pytest.mark.parametrize("block_v, blocks", [(64, 1), (256, 3), (1024, 8)])
def test_size_of_slices_does_not_change_the_result(block_v, blocks, device):
    logits, log_w = random_inputs(2, 3, 5000, device)
    logits[0, :, :4500] = -INF  # whole slices of forbidden tokens
    found, _ = op.launch_expert_rows(logits, log_w, block_v=block_v, blocks=blocks)
    torch.testing.assert_close(found, op.expert_rows_plain(logits, log_w)[0])
