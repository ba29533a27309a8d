import pytest
import torch

from tests.helpers.numerics import assert_as_accurate
from xelm_kernels import router_score as op

SHAPES = [
    (1, 1, 1, 1),
    (5, 40, 7, 3),
    (4, 300, 100, 16),
    (3, 50, 128, 33),
    (19, 60, 100, 40),
    (2, 9, 150, 5),
]  # N, F, D, K
RULES = [(2, 0.1, None), (1, 0.1, None), (2, 0.5, 1), (2, 1.0, 2), (1, 0.3, 100)]


@pytest.fixture(autouse=True)
def triton():
    return pytest.importorskip("triton", reason="Triton has no build for this platform")


def random_inputs(N, F, D, K, device, dtype=torch.float32):
    """Rows of 0 to 40 entries, normalised as tf-idf is, and centroids within the unit ball."""
    lengths = torch.randint(41, (N,))
    lengths[N // 2] = 0 if N > 1 else 1
    starts = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    columns = torch.randint(F, (int(starts[-1]),), dtype=torch.int32)
    values = torch.rand(len(columns)) / 6
    table, centroids = torch.randn(F, D).to(dtype), torch.randn(K, D) / (2 * D**0.5)
    return [x.to(device) for x in (starts, columns, values, table, centroids)]


def plain_distances(starts, columns, values, table, centroids):
    """The same in float32, dense."""
    dense = torch.zeros(len(starts) - 1, len(table), device=values.device)
    rows = torch.repeat_interleave(torch.arange(len(dense), device=values.device), starts.diff())
    dense.index_put_((rows, columns.long()), values.float(), accumulate=True)
    z = torch.nn.functional.normalize(dense @ table.float(), dim=1)
    return (z[:, None] - centroids).square().sum(-1)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_weights_match_the_definition(shape, rule, device):
    assert_weights_match(random_inputs(*shape, device), rule)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_table_of_half_the_size_is_read_as_it_is(dtype, device):
    assert_weights_match(random_inputs(*SHAPES[2], device, dtype), RULES[0])


def test_columns_and_starts_of_either_width_give_the_same_weights(device):
    starts, columns, *rest = random_inputs(*SHAPES[4], device)
    expected = op._launch(starts, columns, *rest, RULES[0])
    assert torch.equal(op._launch(starts.int(), columns.long(), *rest, RULES[0]), expected)


def test_tables_of_2_to_the_31_numbers_are_addressed_alike(device):
    N, F, D, K = SHAPES[2]
    args = random_inputs(N, F, D, K, device)
    out, rule = torch.empty(N, K, device=device), (D, K, D, 2, 16, False)
    op._router_score_kernel[(N,)](*args, out, 0.1, *rule, IS_LONG=True, num_warps=1)
    assert torch.equal(out, op._launch(*args, RULES[0]))


@pytest.mark.parametrize("rule", [*RULES[:3], None], ids=str)
@pytest.mark.parametrize("shape", SHAPES[2:], ids=str)
def test_rows_give_the_same_bits_in_any_batch(shape, rule, device):
    starts, *rest = random_inputs(*shape, device)
    together = op._launch(starts, *rest, rule)
    for n in range(shape[0]):
        assert torch.equal(op._launch(starts[n : n + 2], *rest, rule), together[n : n + 1])


@pytest.mark.parametrize("num_entries", [31, 32, 33, 64, 150])
def test_rows_that_end_at_and_beside_a_block_are_added_up_to_their_end(num_entries, device):
    _, _, _, table, centroids = random_inputs(1, 300, 100, 16, device)
    starts = torch.tensor([0, num_entries, 2 * num_entries], device=device)
    columns = torch.randint(300, (2 * num_entries,), dtype=torch.int32).to(device)
    assert_weights_match([starts, columns, torch.rand(len(columns)).to(device), table, centroids], RULES[0])


def test_first_term_without_a_number_harms_no_row_that_lacks_it(device):
    starts, columns, values, table, centroids = random_inputs(4, 30, 100, 3, device)
    columns = columns.clamp(min=1)
    expected = op._launch(starts, columns, values, table, centroids, RULES[0])
    table[0] = float("nan")
    assert torch.equal(op._launch(starts, columns, values, table, centroids, RULES[0]), expected)


def assert_weights_match(args, rule):
    truth = op.weights_ref(op.squared_distances_ref(*args), *rule)
    plain = op.weights_ref(plain_distances(*args), *rule)
    assert_as_accurate("weights", op._launch(*args, rule), plain, truth)
    power, temperature, top_k = rule
    public = op.router_score(*args, power=power, temperature=temperature, top_k=top_k)
    torch.testing.assert_close(public.double(), truth, atol=2e-5, rtol=0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_nearest_clusters_match_the_definition(shape, device):
    args = random_inputs(*shape, device)
    expected = op.squared_distances_ref(*args).argmin(1)
    assert torch.equal(op._launch(*args), expected)
    assert torch.equal(op.nearest_cluster(*args), expected)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_of_equally_near_clusters_the_lower_ones_are_kept(top_k, device):
    starts, columns, values, table, centroids = random_inputs(2, 9, 4, 5, device)
    centroids[:] = centroids[0]
    args = starts, columns, values, table, centroids
    expected = torch.zeros(2, 5, device=device)
    expected[:, :top_k] = 1 / top_k
    torch.testing.assert_close(op._launch(*args, (2, 0.1, top_k)), expected)
    torch.testing.assert_close(op.router_score(*args, top_k=top_k), expected)
    assert op._launch(*args).tolist() == op.nearest_cluster(*args).tolist() == [0, 0]


def test_an_empty_row_is_weighed_by_the_lengths_of_the_centroids(device):
    *_, table, centroids = random_inputs(1, 9, 4, 5, device)
    starts = torch.tensor([0, 0, 0], device=device)
    columns, values = torch.empty(0, dtype=torch.int32, device=device), torch.empty(0, device=device)
    expected = torch.softmax(-(centroids.square().sum(1) ** 2) / 0.1, 0).expand(2, -1)
    for weights in (
        op._launch(starts, columns, values, table, centroids, (2, 0.1, None)),
        op.router_score(starts, columns, values, table, centroids),
    ):
        torch.testing.assert_close(weights, expected)


def test_a_vector_of_nothing_but_rounding_is_not_made_longer(device):
    args = random_inputs(2, 9, 4, 5, device)
    args[3] *= 1e-18
    expected = op.weights_ref(args[4].double().square().sum(1).expand(2, -1), 2, 0.1, None)
    torch.testing.assert_close(op._launch(*args, (2, 0.1, None)).double(), expected, atol=1e-6, rtol=0)


def test_padding_of_the_table_is_not_read(device):
    args = random_inputs(4, 30, 100, 3, device)
    padded = torch.full((30, 104), float("nan"), device=device)
    padded[:, :100] = args[3]
    expected = op._launch(*args, RULES[0])
    args[3] = padded[:, :100]
    assert torch.equal(op._launch(*args, RULES[0]), expected)


def test_repeated_runs_are_bit_equal(device):
    args = random_inputs(4, 300, 100, 16, device)
    assert torch.equal(op._launch(*args, RULES[0]), op._launch(*args, RULES[0]))


def test_no_rows_give_an_empty_result(device):
    args = random_inputs(1, 5, 4, 3, device)
    args[0], args[1], args[2] = args[0][:1], args[1][:0], args[2][:0]
    assert op._launch(*args, RULES[0]).shape == op.router_score(*args).shape == (0, 3)
    assert op._launch(*args).shape == op.nearest_cluster(*args).shape == (0,)


def test_what_does_not_fit_is_named():
    args = random_inputs(2, 5, 4, 3, "cpu")
    with pytest.raises(ValueError, match=r"must fit together; got .*\[5, 4\], \[3, 3\]"):
        op.router_score(*args[:4], args[4][:, :3])
    for rule in ({"power": 3}, {"temperature": 0.0}, {"top_k": 0}):
        with pytest.raises(ValueError, match=r"use power 2"):
            op.router_score(*args, **rule)
    args[3].requires_grad_()
    with pytest.raises(NotImplementedError, match=r"torch\.no_grad"):
        op.nearest_cluster(*args)
