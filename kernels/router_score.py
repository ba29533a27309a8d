"""Sparse tf-idf rows to the router's weights, or to the nearest cluster, in one launch.

    z_n = sum_i values[i] table[columns[i]]  over row n's entries i,       z_n = z_n / |z_n|
    d_nk^2 = |z_n|^2 + |c_k|^2 - 2 z_n c_k
    weights[n, k] = softmax_k( -(d_nk^2)^power / temperature ),  the top_k largest renormalised

Power 2 is the rule of the programs of c-BTM and X-ELM, 1 the one that c-BTM (arXiv 2303.14177) prints. A
vector shorter than scikit-learn normalises (10 times the precision of a double) stays as it is, as that of an
empty row does. No vector is written: a program keeps those of its rows to itself. Of few rows each has a
program, which reads several entries at a time; of many rows a program takes a block, reads an entry of each
at a time, and has the products with the centroids from the tensor cores.
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


# --- Kernels -------------------------------------------------------------------


@triton.jit
def distances_of(z_D, centroids_ptr, d, K, D: tl.constexpr, BLOCK_K: tl.constexpr):
    """Squared distances [BLOCK_K], in the vector's own precision, of a vector that is not yet scaled.

    They are infinite behind the last cluster.
    """
    length = tl.sqrt(tl.sum(z_D * z_D, 0))
    # 2.2e-15: scikit-learn's bound. As a literal, for a kernel sees no numbers from outside.
    z_D = z_D / tl.where(length < 2.220446049250313e-15, 1.0, length)
    k = tl.arange(0, BLOCK_K)
    distance_K = tl.full([BLOCK_K], float("inf"), z_D.dtype)
    # One after another: all of them at once are more numbers than a warp has registers.
    for i in range(K):
        c_D = tl.load(centroids_ptr + i * D + d, mask=d < D, other=0.0).to(z_D.dtype)
        distance_K = tl.where(k == i, tl.sum((z_D - c_D) * (z_D - c_D), 0), distance_K)
    return distance_K


@triton.jit
def weights_of(distance_NK, temperature, BLOCK_K: tl.constexpr, POWER: tl.constexpr, TOP_K: tl.constexpr):
    """The rule, a row at a time; 0 behind the last cluster."""
    k = tl.arange(0, BLOCK_K)[None, :]
    energy_NK = distance_NK if POWER == 1 else distance_NK * distance_NK
    weight_NK = tl.exp((tl.min(energy_NK, 1)[:, None] - energy_NK) / temperature)
    if TOP_K < BLOCK_K:
        left_NK = energy_NK
        for _ in range(TOP_K):
            # Of equal ones the lower index: argmin leaves open which it is on a GPU.
            is_least = left_NK == tl.min(left_NK, 1)[:, None]
            first_N = tl.min(tl.where(is_least, k, BLOCK_K), 1)
            left_NK = tl.where(k == first_N[:, None], float("inf"), left_NK)
        weight_NK = tl.where(left_NK == float("inf"), weight_NK, 0.0)
    return weight_NK / tl.sum(weight_NK, 1)[:, None]


@triton.jit
def _router_score_kernel(
    starts_ptr,
    columns_ptr,
    values_ptr,
    table_ptr,
    centroids_ptr,
    out_ptr,
    K,
    temperature,
    STRIDE_F: tl.constexpr,  # known to the compiler, for it to read as many numbers at once as are aligned
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    POWER: tl.constexpr,
    TOP_K: tl.constexpr,
    IS_NEAREST: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(starts_ptr + n), tl.load(starts_ptr + n + 1)
    d, i = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_I)
    z_D = tl.zeros([BLOCK_D], tl.float32)
    for start in range(begin, end, BLOCK_I):
        is_entry = start + i < end
        # int64: 500k terms of 100 dimensions are far from 2**31 elements, a larger vocabulary is not.
        column = tl.load(columns_ptr + start + i, mask=is_entry, other=0).to(tl.int64)
        value = tl.load(values_ptr + start + i, mask=is_entry, other=0.0).to(tl.float32)
        mask = is_entry[:, None] & (d < D)[None, :]
        row = tl.load(table_ptr + column[:, None] * STRIDE_F + d[None, :], mask=mask, other=0.0).to(
            tl.float32
        )
        z_D += tl.sum(value[:, None] * row, 0)
    distance_K = distances_of(z_D, centroids_ptr, d, K, D, BLOCK_K)
    k = tl.arange(0, BLOCK_K)
    if IS_NEAREST:
        nearest = tl.min(tl.where(distance_K == tl.min(distance_K, 0), k, BLOCK_K), 0)
        tl.store(out_ptr + n, nearest.to(tl.int64))
    else:
        weight_NK = weights_of(distance_K[None, :], temperature, BLOCK_K, POWER, TOP_K)
        tl.store(out_ptr + n * K + k[None, :], weight_NK, mask=(k < K)[None, :])


@triton.jit
def _add_up(
    starts_ptr,
    columns_ptr,
    values_ptr,
    table_ptr,
    z_ptr,
    n,
    N,
    STRIDE_F: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """Write the unit vectors of rows n, of which each warp adds up its own, some entries at a time."""
    d, i = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_I)
    begin_R = tl.load(starts_ptr + n, mask=n < N, other=0)
    end_R = tl.load(starts_ptr + n + 1, mask=n < N, other=0)
    z_RD = tl.zeros([n.shape[0], BLOCK_D], tl.float32)
    for start in range(0, tl.max(end_R - begin_R, 0), BLOCK_I):
        at_IR = begin_R[None, :] + start + i[:, None]
        is_entry_IR = at_IR < end_R[None, :]
        column_IR = tl.load(columns_ptr + at_IR, mask=is_entry_IR, other=0).to(tl.int64)
        value_IR = tl.load(values_ptr + at_IR, mask=is_entry_IR, other=0.0).to(tl.float32)
        mask = is_entry_IR[:, :, None] & (d < D)[None, None, :]
        row_IRD = tl.load(
            table_ptr + column_IR[:, :, None] * STRIDE_F + d[None, None, :], mask=mask, other=0.0
        )
        z_RD += tl.sum(value_IR[:, :, None] * row_IRD.to(tl.float32), 0)
    length_R = tl.sqrt(tl.sum(z_RD * z_RD, 1))
    z_RD = z_RD / tl.where(length_R < 2.220446049250313e-15, 1.0, length_R)[:, None]
    tl.store(z_ptr + n[:, None] * BLOCK_D + d[None, :], z_RD, mask=(n < N)[:, None])


@triton.jit
def _router_score_block_kernel(
    starts_ptr,
    columns_ptr,
    values_ptr,
    table_ptr,
    centroids_ptr,
    out_ptr,
    z_ptr,
    N,
    K,
    temperature,
    STRIDE_F: tl.constexpr,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    POWER: tl.constexpr,
    TOP_K: tl.constexpr,
    IS_NEAREST: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_I: tl.constexpr,
    CHUNK_D: tl.constexpr,
):
    first_n = tl.program_id(0).to(tl.int64) * BLOCK_N
    for r in range(0, BLOCK_N, BLOCK_R):
        n = first_n + r + tl.arange(0, BLOCK_R)
        _add_up(starts_ptr, columns_ptr, values_ptr, table_ptr, z_ptr, n, N, STRIDE_F, D, BLOCK_D, BLOCK_I)
    tl.debug_barrier()  # what one warp has written another reads
    n, k = first_n + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    product_NK = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    square_N, square_K = tl.zeros([BLOCK_N], tl.float32), tl.zeros([BLOCK_K], tl.float32)
    # Few dimensions at a time: both sides of a product lie in shared memory, and many programs want some.
    for first_d in range(0, BLOCK_D, CHUNK_D):
        d = first_d + tl.arange(0, CHUNK_D)
        z_ND = tl.load(z_ptr + n[:, None] * BLOCK_D + d[None, :], mask=(n < N)[:, None], other=0.0)
        inside = (k < K)[None, :] & (d < D)[:, None]
        c_DK = tl.load(centroids_ptr + k[None, :] * D + d[:, None], mask=inside, other=0.0).to(tl.float32)
        product_NK = tl.dot(z_ND, c_DK, product_NK, input_precision="tf32x3")
        square_N += tl.sum(z_ND * z_ND, 1)
        square_K += tl.sum(c_DK * c_DK, 0)
    distance_NK = tl.maximum(square_N[:, None] + square_K[None, :] - 2.0 * product_NK, 0.0)
    distance_NK = tl.where((k < K)[None, :], distance_NK, float("inf"))
    if IS_NEAREST:
        is_nearest = distance_NK == tl.min(distance_NK, 1)[:, None]
        nearest_N = tl.min(tl.where(is_nearest, k[None, :], BLOCK_K), 1)
        tl.store(out_ptr + n, nearest_N.to(tl.int64), mask=n < N)
    else:
        weight_NK = weights_of(distance_NK, temperature, BLOCK_K, POWER, TOP_K)
        mask = (n < N)[:, None] & (k < K)[None, :]
        tl.store(out_ptr + n[:, None] * K + k[None, :], weight_NK, mask=mask)


# --- Launch --------------------------------------------------------------------

# Rows from which on blocks of them are enough programs for a GPU, and clusters up to which a block of
# distances fits into a warp's registers.
_MANY_ROWS = 8192
_MOST_IN_REGISTERS = 256


def _check(starts, columns, values, table_FD, centroids_KD):
    shapes = [x.shape for x in (starts, columns, values, table_FD, centroids_KD)]
    fits = [len(shape) for shape in shapes] == [1, 1, 1, 2, 2] and shapes[1] == shapes[2]
    if not fits or shapes[3][1] != shapes[4][1] or not shapes[0][0] or not shapes[4][0]:
        raise ValueError(
            "router_score: starts [N + 1], columns and values [entries], table [F, D] and centroids [K, D] "
            f"must fit together; got {[list(shape) for shape in shapes]}."
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


def constants(table_FD, centroids_KD, power, top_k):
    """What the kernels of the router are compiled for."""
    K, D = centroids_KD.shape
    block_k = triton.next_power_of_2(K)
    return {
        "STRIDE_F": table_FD.stride(0),
        "D": D,
        "BLOCK_D": max(16, triton.next_power_of_2(D)),  # tensor cores take 16 at least
        "BLOCK_K": block_k,
        "POWER": power,
        "TOP_K": block_k if top_k is None or top_k >= K else top_k,
    }


def _launch(starts, columns, values, table_FD, centroids_KD, rule=None, *, in_blocks=None, **options):
    """Weights by (power, temperature, top_k), or without a rule the nearest clusters; one program a row.

    `in_blocks` and `options` replace what is chosen by the number of rows, for tests and benchmarks.
    """
    N, K = len(starts) - 1, len(centroids_KD)
    power, temperature, top_k = rule or (2, 1.0, None)
    out = starts.new_empty((N, K), dtype=torch.float32) if rule else starts.new_empty(N, dtype=torch.int64)
    if N == 0:  # a grid may not be empty
        return out
    table_FD = table_FD if table_FD.stride(-1) == 1 else table_FD.contiguous()
    args = starts.contiguous(), columns.contiguous(), values.contiguous(), table_FD
    args += centroids_KD.contiguous(), out
    fixed = constants(table_FD, centroids_KD, power, top_k) | {"IS_NEAREST": rule is None, "num_warps": 1}
    if in_blocks is None:
        in_blocks = N >= _MANY_ROWS and K <= _MOST_IN_REGISTERS
    if in_blocks:
        fixed |= {"BLOCK_N": 16, "BLOCK_R": 4, "BLOCK_I": 8, "CHUNK_D": 16, "num_warps": 4, **options}
        z_ND = torch.empty(N, fixed["BLOCK_D"], dtype=torch.float32, device=starts.device)
        grid = (triton.cdiv(N, fixed["BLOCK_N"]),)
        _router_score_block_kernel[grid](*args, z_ND, N, K, temperature, **fixed)
    else:
        fixed |= {"BLOCK_I": 16, **options}
        _router_score_kernel[(N,)](*args, K, temperature, **fixed)
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
