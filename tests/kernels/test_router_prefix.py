import numpy as np
import pytest
import torch

from tests.helpers.numerics import assert_as_accurate
from tests.helpers.random_opt import write_opt_tokenizer
from xelm_kernels import router_prefix as op
from xelm_kernels.router_score import weights_ref

SHAPES = [(1, 1, 1, 1, 1), (3, 12, 40, 7, 3), (2, 9, 300, 100, 16), (2, 5, 50, 128, 33)]  # N, T each, F, D, K
RULES = [(2, 0.1, None), (1, 0.1, None), (2, 0.5, 1), (2, 1.0, 2), (1, 0.3, 100)]
UPSTREAM = RULES[0]


@pytest.fixture(autouse=True)
def triton():
    return pytest.importorskip("triton", reason="Triton has no build for this platform")


def lists(num_tokens, num_terms, most):
    """Up to `most` terms a token, as starts and terms."""
    starts = torch.cat([torch.zeros(1, dtype=torch.long), torch.randint(most + 1, (num_tokens,)).cumsum(0)])
    return starts, torch.randint(num_terms, (int(starts[-1]),), dtype=torch.int32)


def random_inputs(N, T, F, D, K, device, dtype=torch.float32):
    """N documents of T tokens, and one of none."""
    starts = torch.tensor([n * T for n in range(N + 1)] + [N * T])
    table, centroids = torch.randn(F, D).to(dtype), torch.randn(K, D) / (2 * D**0.5)
    args = starts, *lists(N * T, F, 3), *lists(N * T, F, 2), 1 + torch.rand(F), table, centroids
    return [x.to(device) for x in args]


def plain_distances(starts, settled_starts, settled, open_starts, opened, idf, table, centroids):
    """The same in float32, by cumulative sums."""
    rows = idf[:, None] * table.float()

    def sums(ends, terms):
        zero = rows.new_zeros(1, rows.shape[1])
        return torch.cat([zero, rows[terms.long()].cumsum(0)])[ends]

    u = sums(settled_starts[1:], settled) + sums(open_starts[1:], opened) - sums(open_starts[:-1], opened)
    document = torch.repeat_interleave(torch.arange(len(starts) - 1, device=starts.device), starts.diff())
    u -= sums(settled_starts[starts[:-1].clamp(max=len(u))], settled)[document]
    return (torch.nn.functional.normalize(u, dim=1)[:, None] - centroids).square().sum(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_weights_match_the_definition(shape, rule, dtype, device):
    args = random_inputs(*shape, device, dtype)
    truth = weights_ref(op.prefix_squared_distances_ref(*args), *rule)
    plain = weights_ref(plain_distances(*args), *rule)
    assert_as_accurate("weights", op._launch(*args, rule), plain, truth)
    power, temperature, top_k = rule
    public = op.router_prefix(*args, power=power, temperature=temperature, top_k=top_k)
    torch.testing.assert_close(public.double(), truth, atol=2e-5, rtol=0)


def test_a_document_is_weighed_as_if_it_were_alone(device):
    N, T = 3, 6
    starts, settled_starts, settled, open_starts, opened, *tables = random_inputs(N, T, 30, 8, 4, device)
    together = op._launch(starts, settled_starts, settled, open_starts, opened, *tables, UPSTREAM)
    for n in range(N):
        part, alone = slice(n * T, n * T + T + 1), torch.tensor([0, T], device=device)
        first, first_open = settled_starts[n * T], open_starts[n * T]
        args = (
            settled_starts[part] - first,
            settled[first:],
            open_starts[part] - first_open,
            opened[first_open:],
        )
        assert torch.equal(op._launch(alone, *args, *tables, UPSTREAM), together[n * T : n * T + T])


def test_prefixes_without_a_term_are_weighed_by_the_lengths_of_the_centroids(device):
    *_, idf, table, centroids = random_inputs(1, 1, 9, 4, 5, device)
    starts, none = torch.tensor([0, 3], device=device), torch.zeros(4, dtype=torch.long, device=device)
    nothing = torch.empty(0, dtype=torch.int32, device=device)
    args = starts, none, nothing, none, nothing, idf, table, centroids
    expected = torch.softmax(-(centroids.square().sum(1) ** 2) / 0.1, 0).expand(3, -1)
    torch.testing.assert_close(op._launch(*args, UPSTREAM), expected)
    torch.testing.assert_close(op.router_prefix(*args), expected)


def test_a_vector_of_nothing_but_rounding_counts_as_0(device):
    args = random_inputs(1, 4, 9, 4, 5, device)
    args[6] *= 1e-18
    expected = weights_ref(args[7].double().square().sum(1).expand(4, -1), *UPSTREAM)
    torch.testing.assert_close(op._launch(*args, UPSTREAM).double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("analyzer", ["word", "char_wb"])
def test_real_documents_get_the_weights_of_the_router_on_the_cpu(analyzer, device, tmp_path):
    from xelm_nemo.clustering.clusterer import TfidfClusterer
    from xelm_nemo.clustering.features import FeatureSettings, TextFeatures
    from xelm_nemo.clustering.tfidf import TfidfVectorizer
    from xelm_nemo.corpus.tokenizer import encode_document, load_tokenizer
    from xelm_nemo.corpus.udhr import documents
    from xelm_nemo.router import Router
    from xelm_nemo.router.pieces import pieces_of

    texts = list({row["lang"]: row["text"][:60] for row in documents()}.values())
    settings = FeatureSettings(analyzer, (1, 1) if analyzer == "word" else (1, 3), None)
    vectorizer = TfidfVectorizer(**vars(settings)).fit([*texts, *(text[:7] for text in texts)])
    draw = np.random.default_rng(3)
    components = draw.normal(size=(20, len(vectorizer.terms_)))
    features = TextFeatures(settings, vectorizer.terms_, vectorizer.idf_, components)
    model = TfidfClusterer(3, features, draw.normal(size=(3, 20)).astype(np.float32) / 5)
    tokenizer = load_tokenizer(write_opt_tokenizer(texts, tmp_path))
    encoded = [encode_document(tokenizer, text) for text in texts]
    router, ends = Router(model), np.cumsum([len(ids) for ids in encoded])
    lists = features.prefix_router(model.centroids).terms(
        pieces_of(tokenizer).in_cpp, np.concatenate(encoded).astype(np.int32), ends.tolist(), num_threads=2
    )
    arrays = np.array([0, *ends]), *lists, features.idf, components.T.copy(), model.centroids
    weights = op._launch(*(torch.from_numpy(array).to(device) for array in arrays), UPSTREAM)
    expected = torch.cat([router.prefix_weights(ids, tokenizer) for ids in encoded])
    torch.testing.assert_close(weights.cpu(), expected, atol=1e-6, rtol=0)


def test_repeated_runs_are_bit_equal(device):
    args = random_inputs(*SHAPES[2], device)
    assert torch.equal(op._launch(*args, UPSTREAM), op._launch(*args, UPSTREAM))


def test_no_documents_give_an_empty_result(device):
    starts = torch.zeros(1, dtype=torch.long, device=device)
    none = torch.empty(0, dtype=torch.int32, device=device)
    args = starts, starts, none, starts, none, *random_inputs(*SHAPES[1], device)[5:]
    assert op._launch(*args, UPSTREAM).shape == op.router_prefix(*args).shape == (0, 3)


def test_what_does_not_fit_is_named():
    args = random_inputs(*SHAPES[1], "cpu")
    with pytest.raises(ValueError, match=r"must fit together; got .*\[39\]"):
        op.router_prefix(*args[:5], args[5][1:], *args[6:])
    with pytest.raises(ValueError, match=r"use power 2"):
        op.router_prefix(*args, power=3)
    args[6].requires_grad_()
    with pytest.raises(NotImplementedError, match=r"torch\.no_grad"):
        op.router_prefix(*args)
