"""Router weights of every prefix of documents, in one launch.

    u_t = sum of idf[w] table[w]  over the terms w that have settled up to token t and those open at t
    z_t = u_t / |u_t|,     d_tk^2 = |z_t|^2 + |c_k|^2 - 2 z_t c_k
    weights[t, k] = softmax_k( -(d_tk^2)^power / temperature ),  the top_k largest renormalised

A program goes through a document and keeps the sum of the settled terms to itself; no vector and no distance
is written. All is in float64, for weights equal to those of the CPU to 1e-6: a distance in float32 is not
enough. Which terms a token settles, and which are open, says `terms` of `_csrc.PrefixRouter`. A vector that
is all but nothing beside the weight of its terms, by scikit-learn's bound of 10 times the precision of a
double, counts as 0.
Shape letters: N documents, T tokens of all of them, F terms, D dimensions, K clusters.
"""

import torch

from xelm_kernels.optional_triton import tl, triton
from xelm_kernels.router_score import (
    TOO_SHORT,
    check_rule,
    num_kept,
    refuse_gradients,
    unit,
    weights_of,
    weights_ref,
)

# --- Reference -----------------------------------------------------------------


def prefix_squared_distances_ref(starts, settled_starts, settled, open_starts, opened, idf_F, table_FD, c_KD):
    """Squared distances, float64 [T, K]; row by row, to be obvious."""
    rows_FD = idf_F.double()[:, None] * table_FD.double()
    out = []
    for first, end in zip(starts.tolist(), starts.tolist()[1:], strict=False):
        for t in range(first, end):
            terms = torch.cat(
                [
                    settled[settled_starts[first] : settled_starts[t + 1]],
                    opened[open_starts[t] : open_starts[t + 1]],
                ]
            ).long()
            u_D, weight = rows_FD[terms].sum(0), idf_F.double()[terms].sum()
            z_D = u_D / u_D.norm() if u_D.norm() > TOO_SHORT * weight else torch.zeros_like(u_D)
            out.append((z_D - c_KD.double()).square().sum(-1))
    return torch.stack(out) if out else c_KD.new_empty(0, len(c_KD)).double()


# --- Kernel --------------------------------------------------------------------


@triton.jit
def _add(z_D, weight, terms_ptr, begin, end, idf_ptr, table_ptr, d, STRIDE_F: tl.constexpr, D: tl.constexpr):
    """A sum with some more terms, and the weight of all of them."""
    for i in range(begin, end):
        term = tl.load(terms_ptr + i).to(tl.int64)
        idf = tl.load(idf_ptr + term).to(tl.float64)
        z_D += idf * tl.load(table_ptr + term * STRIDE_F + d, mask=d < D, other=0.0).to(tl.float64)
        weight += idf
    return z_D, weight


@triton.jit
def _distances(z_D, centroids_ptr, d, K, D: tl.constexpr, BLOCK_K: tl.constexpr):
    """Squared distances [BLOCK_K], in the vector's own precision, of a vector that is not yet scaled.

    They are infinite behind the last cluster.
    """
    z_D = unit(z_D)
    k = tl.arange(0, BLOCK_K)
    distance_K = tl.full([BLOCK_K], float("inf"), z_D.dtype)
    # Four at a time, whose sums over the warp need not wait for each other; all of them at once are more
    # numbers than a warp has registers.
    for first in range(0, K, 4):
        for i in tl.static_range(4):
            mask = (d < D) & (first + i < K)
            c_D = tl.load(centroids_ptr + (first + i) * D + d, mask=mask, other=0.0).to(z_D.dtype)
            is_this = (k == first + i) & (k < K)
            distance_K = tl.where(is_this, tl.sum((z_D - c_D) * (z_D - c_D), 0), distance_K)
    return distance_K


@triton.jit
def _router_prefix_kernel(
    starts_ptr,
    settled_starts_ptr,
    settled_ptr,
    open_starts_ptr,
    open_ptr,
    idf_ptr,
    table_ptr,
    centroids_ptr,
    out_ptr,
    K,
    temperature,
    STRIDE_F: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    POWER: tl.constexpr,
    TOP_K: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    first, end = tl.load(starts_ptr + n), tl.load(starts_ptr + n + 1)
    d, k = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_K)
    z_D = tl.zeros([BLOCK_D], tl.float64)
    weight = tl.sum(z_D, 0)
    for t in range(first, end):
        begin, behind = tl.load(settled_starts_ptr + t), tl.load(settled_starts_ptr + t + 1)
        z_D, weight = _add(z_D, weight, settled_ptr, begin, behind, idf_ptr, table_ptr, d, STRIDE_F, D)
        begin, behind = tl.load(open_starts_ptr + t), tl.load(open_starts_ptr + t + 1)
        u_D, whole = _add(z_D, weight, open_ptr, begin, behind, idf_ptr, table_ptr, d, STRIDE_F, D)
        u_D = u_D / tl.where(whole == 0.0, 1.0, whole)
        distance_K = _distances(u_D, centroids_ptr, d, K, D, BLOCK_K)
        weight_K = weights_of(distance_K, temperature, BLOCK_K, POWER, TOP_K)
        tl.store(out_ptr + t * K + k, weight_K, mask=k < K)


# --- Launch --------------------------------------------------------------------


def _check(starts, settled_starts, settled, open_starts, opened, idf_F, table_FD, c_KD):
    arrays = starts, settled_starts, settled, open_starts, opened, idf_F, table_FD, c_KD
    shapes = [list(x.shape) for x in arrays]
    fits = [len(shape) for shape in shapes] == [1, 1, 1, 1, 1, 1, 2, 2] and shapes[1] == shapes[3]
    if not fits or shapes[6][0] != shapes[5][0] or shapes[6][1] != shapes[7][1] or not shapes[7][0]:
        raise ValueError(
            "router_prefix: starts [N + 1], settled_starts [T + 1], settled, open_starts [T + 1], opened, "
            f"idf [F], table [F, D] and centroids [K, D] must fit together; got {shapes}."
        )
    refuse_gradients("router_prefix", idf_F, table_FD, c_KD)


def _launch(starts, settled_starts, settled, open_starts, opened, idf_F, table_FD, c_KD, rule):
    """Weights by (power, temperature, top_k); one program, of one warp, a document."""
    (K, D), (power, temperature, top_k) = c_KD.shape, rule
    out_TK = torch.empty(len(settled_starts) - 1, K, dtype=torch.float32, device=starts.device)
    if len(out_TK) > 0:  # a grid may not be empty
        table_FD = table_FD if table_FD.stride(-1) == 1 else table_FD.contiguous()
        _router_prefix_kernel[(len(starts) - 1,)](
            *(starts.contiguous(), settled_starts.contiguous(), settled.contiguous()),
            *(open_starts.contiguous(), opened.contiguous(), idf_F.contiguous()),
            *(table_FD, c_KD.contiguous(), out_TK),
            *(K, temperature),
            STRIDE_F=table_FD.stride(0),
            D=D,
            BLOCK_D=triton.next_power_of_2(D),
            BLOCK_K=triton.next_power_of_2(K),
            POWER=power,
            TOP_K=num_kept(top_k, K),
            num_warps=1,
        )
    return out_TK


# --- Public --------------------------------------------------------------------


def router_prefix(
    starts,
    settled_starts,
    settled,
    open_starts,
    opened,
    idf_F,
    table_FD,
    c_KD,
    *,
    power=2,
    temperature=0.1,
    top_k=None,
):
    """Router weights of every prefix of documents. The formula is in the module docstring.

    Args:
        starts: where each document's tokens begin among all T, and the end, int64 [N + 1].
        settled_starts: where the terms begin that settle with each token, and the end, int64 [T + 1].
        settled: these terms, int32.
        open_starts: the same of the terms that are open, int64 [T + 1].
        opened: these terms, int32.
        idf_F: weight of each term, any floating dtype.
        table_FD: the SVD's vector of each term, any floating dtype.
        c_KD: cluster centres.
        power: 2 or 1, of d^2.
        temperature: above 0.
        top_k: clusters kept a token; of equal ones the lower index. None keeps all.

    Returns:
        float32 [T, K]; rows sum to 1.

    Raises:
        ValueError: shapes that do not fit each other, or what is no rule.
        NotImplementedError: an input needs a gradient; there is no backward.
    """
    args = starts, settled_starts, settled, open_starts, opened, idf_F, table_FD, c_KD
    _check(*args)
    check_rule(power, temperature, top_k)
    if starts.is_cuda:
        return _launch(*args, (power, temperature, top_k))
    return weights_ref(prefix_squared_distances_ref(*args), power, temperature, top_k).float()
