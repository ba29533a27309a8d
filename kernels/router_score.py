"""Sparse tf-idf rows to the router's weights, or to the nearest cluster, in one launch.

    z_n = sum_i values[i] table[columns[i]]  over row n's entries i,       z_n = z_n / |z_n|
    d_nk^2 = |z_n|^2 + |c_k|^2 - 2 z_n c_k
    weights[n, k] = softmax_k( -(d_nk^2)^power / temperature ),  the top_k largest renormalised

Power 2 is the rule of the programs of c-BTM and X-ELM, 1 the one that c-BTM (arXiv 2303.14177) prints. A
vector shorter than scikit-learn normalises (10 times the precision of a double) stays as it is, as that of an
empty row does. No vector and no distance is written: a program keeps its row's vector of D numbers to itself.
Shape letters: N rows, F terms, D dimensions, K clusters.
"""

import torch

from xelm_kernels.optional_triton import tl, triton

TOO_SHORT = 10 * torch.finfo(torch.float64).eps

# --- Reference -----------------------------------------------------------------


def squared_distances_ref(starts, columns, values, table_FD, centroids_KD):
    """Squared distances, float64 [N, K]."""
    rows = torch.repeat_interleave(torch.arange(len(starts) - 1, device=starts.device), starts.diff())
    entries = values.double()[:, None] * table_FD[columns.long()].double()
    z_ND = entries.new_zeros(len(starts) - 1, table_FD.shape[1]).index_add_(0, rows, entries)
    length_N1 = z_ND.norm(dim=1, keepdim=True)
    z_ND = z_ND / torch.where(length_N1 < TOO_SHORT, 1.0, length_N1)
    return (z_ND[:, None] - centroids_KD.double()).square().sum(-1)


def weights_ref(distance_NK, power, temperature, top_k):
    """The rule, in float64; of equal weights the lower index is kept."""
    weights_NK = torch.softmax(-(distance_NK**power) / temperature, -1)
    order_NK = weights_NK.sort(dim=-1, descending=True, stable=True).indices
    kept_NK = torch.zeros_like(weights_NK).scatter_(-1, order_NK[:, :top_k], 1.0)
    return weights_NK * kept_NK / (weights_NK * kept_NK).sum(-1, keepdim=True)


# --- Kernel --------------------------------------------------------------------


@triton.jit
def unit(z_D):
    """A vector divided by its length, or as it is where that is too short."""
    length = tl.sqrt(tl.sum(z_D * z_D, 0))
    # 2.2e-15: scikit-learn's bound. As a literal, for a kernel sees no numbers from outside.
    return z_D / tl.where(length < 2.220446049250313e-15, 1.0, length)


@triton.jit
def _entries(columns_ptr, values_ptr, i, length, IS_LONG: tl.constexpr):
    """Columns and values; behind the last entry its column once more, with a value of 0."""
    inside = tl.maximum(tl.minimum(i, length - 1), 0)
    column = tl.load(columns_ptr + inside, mask=length > 0, other=0).to(tl.int64 if IS_LONG else tl.int32)
    return column, tl.load(values_ptr + inside, mask=i < length, other=0.0).to(tl.float32)


@triton.jit
def _vector(
    starts_ptr,
    columns_ptr,
    values_ptr,
    table_ptr,
    STRIDE_F: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    IS_LONG: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """The normalised vector [BLOCK_D] of the row that begins at starts[0].

    An entry costs some 12 instructions: a load, an address, and for each of a lane's four numbers a
    conversion and a product. What made 24 of it is left out: every lane loads one column and one value for
    all lanes, and no row is masked, since a lane behind the last dimension may read others once more. The
    next entries are on their way while these are added up.
    """
    ALIGNED: tl.constexpr = D & -D  # the largest power of 2 that divides D
    d, i = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_I)
    inside = d - tl.where(d < D, 0, BLOCK_D - D)
    row_ptrs = table_ptr + tl.max_contiguous(tl.multiple_of(inside, ALIGNED), ALIGNED)
    begin, end = tl.load(starts_ptr), tl.load(starts_ptr + 1)
    columns_ptr += begin
    values_ptr += begin
    length = (end - begin).to(tl.int32)
    z_D = tl.zeros([BLOCK_D], tl.float32)
    column, value = _entries(columns_ptr, values_ptr, i, length, IS_LONG)
    for start in range(0, length, BLOCK_I):
        next_column, next_value = _entries(columns_ptr, values_ptr, start + BLOCK_I + i, length, IS_LONG)
        row = tl.load(row_ptrs[None, :] + (column * STRIDE_F)[:, None]).to(tl.float32)
        z_D += tl.sum(value[:, None] * row, 0)
        column, value = next_column, next_value
    return unit(tl.where(d < D, z_D, 0.0))


@triton.jit
def _distances(z_D, centroids_ptr, first, K, D: tl.constexpr, BLOCK_D: tl.constexpr, TILE: tl.constexpr):
    """Squared distances [TILE] to the clusters from the first one on.

    Four lanes hold a vector, cut into J pieces of W numbers, so that eight clusters share a warp and few sums
    go across lanes. A cluster at a time, held by all lanes, took nearly three times as many instructions.
    """
    W: tl.constexpr = min(16, BLOCK_D)
    J: tl.constexpr = BLOCK_D // W
    k = first + tl.arange(0, TILE)[:, None, None]
    d = tl.arange(0, J)[None, :, None] * W + tl.arange(0, W)[None, None, :]
    c_KJW = tl.load(centroids_ptr + k * D + d, mask=(k < K) & (d < D), other=0.0).to(tl.float32)
    gap_KJW = tl.reshape(z_D, [J, W])[None, :, :] - c_KJW
    return tl.sum(tl.sum(gap_KJW * gap_KJW, 1), 1)


@triton.jit
def weights_of(distance_K, temperature, BLOCK_K: tl.constexpr, POWER: tl.constexpr, TOP_K: tl.constexpr):
    """The rule; 0 behind the last cluster."""
    k = tl.arange(0, BLOCK_K)
    energy_K = distance_K if POWER == 1 else distance_K * distance_K
    weight_K = tl.exp((tl.min(energy_K, 0) - energy_K) / temperature)
    if TOP_K < BLOCK_K:
        left_K = energy_K
        for _ in range(TOP_K):
            # Of equal ones the lower index: argmin leaves open which it is on a GPU.
            first = tl.min(tl.where(left_K == tl.min(left_K, 0), k, BLOCK_K), 0)
            left_K = tl.where(k == first, float("inf"), left_K)
        weight_K = tl.where(left_K == float("inf"), weight_K, 0.0)
    return weight_K / tl.sum(weight_K, 0)


@triton.jit
def _router_score_kernel(
    starts_ptr,
    columns_ptr,
    values_ptr,
    table_ptr,
    centroids_ptr,
    out_ptr,
    temperature,
    STRIDE_F: tl.constexpr,  # known to the compiler, for it to read as many numbers at once as are aligned
    K: tl.constexpr,
    D: tl.constexpr,
    POWER: tl.constexpr,
    TOP_K: tl.constexpr,
    IS_NEAREST: tl.constexpr,
    IS_LONG: tl.constexpr,
):
    BLOCK_D: tl.constexpr = triton.next_power_of_2(D)
    BLOCK_K: tl.constexpr = triton.next_power_of_2(K)
    TILE: tl.constexpr = min(16, BLOCK_K)
    BLOCK_I: tl.constexpr = max(1, min(32, 4096 // BLOCK_D))  # more numbers than that are spilled
    n = tl.program_id(0).to(tl.int64)
    z_D = _vector(starts_ptr + n, columns_ptr, values_ptr, table_ptr, STRIDE_F, D, BLOCK_D, IS_LONG, BLOCK_I)
    # A tile a row, for a warp has not the registers for all centroids at once.
    tile = tl.arange(0, BLOCK_K // TILE)[:, None]
    distance_KK = tl.zeros([BLOCK_K // TILE, TILE], tl.float32)
    for first in range(0, K, TILE):
        distance_1K = _distances(z_D, centroids_ptr, first, K, D, BLOCK_D, TILE)[None, :]
        distance_KK = tl.where(tile * TILE == first, distance_1K, distance_KK)
    k = tl.arange(0, BLOCK_K)
    distance_K = tl.where(k < K, tl.reshape(distance_KK, [BLOCK_K]), float("inf"))
    if IS_NEAREST:
        nearest = tl.min(tl.where(distance_K == tl.min(distance_K, 0), k, BLOCK_K), 0)
        tl.store(out_ptr + n, nearest.to(tl.int64))
    else:
        weight_K = weights_of(distance_K, temperature, BLOCK_K, POWER, TOP_K)
        tl.store(out_ptr + n * K + k, weight_K, mask=k < K)


# --- Launch --------------------------------------------------------------------


def _check(starts, columns, values, table_FD, centroids_KD):
    inputs = starts, columns, values, table_FD, centroids_KD
    fits = [x.ndim for x in inputs] == [1, 1, 1, 2, 2] and columns.shape == values.shape
    if not fits or table_FD.shape[1] != centroids_KD.shape[1] or not starts.shape[0] or not len(centroids_KD):
        raise ValueError(
            "router_score: starts [N + 1], columns and values [entries], table [F, D] and centroids [K, D] "
            f"must fit together; got {[list(x.shape) for x in inputs]}."
        )
    refuse_gradients("router_score", values, table_FD, centroids_KD)


def check_rule(power, temperature, top_k):
    """Refuse what is no rule."""
    if power not in (1, 2) or not temperature > 0 or (top_k is not None and top_k < 1):
        raise ValueError(
            f"power={power}, temperature={temperature}, top_k={top_k}: use power 2 (as upstream) or 1 "
            "(as the paper), a temperature above 0, and a top_k of 1 or more, or None."
        )


def refuse_gradients(name, *inputs):
    """Refuse to be silent about gradients that nobody computes."""
    if any(x.requires_grad for x in inputs):
        raise NotImplementedError(
            f"{name} has no backward; call it under torch.no_grad() on detached inputs."
        )


def num_kept(top_k, K):
    """What kernels know top_k as: all that a block has room for where no cluster is left out."""
    return triton.next_power_of_2(K) if top_k is None or top_k >= K else top_k


def _launch(starts, columns, values, table_FD, centroids_KD, rule=None):
    """Weights by (power, temperature, top_k), or without a rule the nearest clusters; one program a row."""
    N, (K, D) = starts.shape[0] - 1, centroids_KD.shape
    power, temperature, top_k = rule or (2, 1.0, None)
    out = starts.new_empty((N, K), dtype=torch.float32) if rule else starts.new_empty(N, dtype=torch.int64)
    if N > 0:  # a grid may not be empty
        table_FD = table_FD if table_FD.stride(1) == 1 else table_FD.contiguous()
        stride = table_FD.stride(0)
        # 500k terms of 100 dimensions are far from 2**31 numbers, a larger vocabulary is not.
        is_long = table_FD.shape[0] * stride >= 2**31
        _router_score_kernel[(N,)](
            *(starts.contiguous(), columns.contiguous(), values.contiguous()),
            *(table_FD, centroids_KD.contiguous(), out, temperature),
            # By position: names take Triton longer, and a small launch is nothing but what the CPU does.
            *(stride, K, D, power, num_kept(top_k, K), rule is None, is_long),
            num_warps=1,
        )
    return out


# --- Public --------------------------------------------------------------------


def router_score(starts, columns, values, table_FD, centroids_KD, *, power=2, temperature=0.1, top_k=None):
    """Router weights of sparse rows. The formula is in the module docstring.

    Args:
        starts: where each row's entries begin, and the end of the last, int32 or int64 [N + 1].
        columns: of the entries, int32 or int64; a term may come several times in a row.
        values: of the entries, any floating dtype.
        table_FD: the SVD's vector of each term, any floating dtype; float16 halves what is read.
        centroids_KD: cluster centres.
        power: 2 or 1, of d^2.
        temperature: above 0.
        top_k: clusters kept a row; of equal ones the lower index. None keeps all.

    Returns:
        float32 [N, K]; rows sum to 1.

    Raises:
        ValueError: shapes that do not fit each other, or what is no rule.
        NotImplementedError: an input needs a gradient; there is no backward.
    """
    _check(starts, columns, values, table_FD, centroids_KD)
    check_rule(power, temperature, top_k)
    if starts.is_cuda:
        return _launch(starts, columns, values, table_FD, centroids_KD, (power, temperature, top_k))
    distance_NK = squared_distances_ref(starts, columns, values, table_FD, centroids_KD)
    return weights_ref(distance_NK, power, temperature, top_k).float()


def nearest_cluster(starts, columns, values, table_FD, centroids_KD):
    """The cluster nearest to each sparse row, int64 [N]; of equally near ones the lower."""
    _check(starts, columns, values, table_FD, centroids_KD)
    if starts.is_cuda:
        return _launch(starts, columns, values, table_FD, centroids_KD)
    distance_NK = squared_distances_ref(starts, columns, values, table_FD, centroids_KD)
    return distance_NK.min(dim=1).indices
