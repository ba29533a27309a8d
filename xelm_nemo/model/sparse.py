"""Which layers have moe_experts, and what keeps a sparse model from being divided as asked."""

from xelm_nemo.model.config import ModelConfig, ParallelConfig, SparseConfig


def sparse_problems(shape: ModelConfig, layout: ParallelConfig) -> list[str]:
    """Why there can be no such sparse model, or not at this layout; nothing when there can."""
    ep = layout.expert_model_parallel_size
    if not isinstance(shape, SparseConfig):
        return _dense_problems(ep)
    problems = _gate_problems(shape)
    if shape.num_layers % shape.moe_layer_freq:
        problems.append(
            f"upcycle.moe_layer_freq={shape.moe_layer_freq} does not divide model.num_layers="
            f"{shape.num_layers}; use one of {divisors(shape.num_layers)}"
        )
    if shape.post_layernorm:
        problems.append(
            "model.post_layernorm=true does not go with upcycle.*: moe_experts are in layers whose norms "
            "come first; use a seed model other than OPT-350M"
        )
    if shape.num_moe_experts % ep:
        problems.append(
            f"parallel.expert_model_parallel_size={ep} does not divide upcycle.num_moe_experts="
            f"{shape.num_moe_experts}; use one of {divisors(shape.num_moe_experts)}"
        )
    return problems + _rank_problems(layout)


def _dense_problems(ep: int) -> list[str]:
    if ep == 1:
        return []
    return [
        f"parallel.expert_model_parallel_size={ep} divides moe_experts, and a dense model has none; use 1, "
        "or upcycle.enabled=true"
    ]


def _gate_problems(shape: SparseConfig) -> list[str]:
    experts, topk, factor = shape.num_moe_experts, shape.moe_router_topk, shape.moe_expert_capacity_factor
    # Megatron rounds room up: for nearly all tokens it can be one more than there are, but not where every
    # moe_expert is chosen anyway, for its numbers are then whole.
    most = 1.0 if topk == experts else 1 - 1e-9
    problems = []
    if topk > experts:
        problems.append(f"upcycle.moe_router_topk={topk} is more than upcycle.num_moe_experts={experts}")
    elif factor is not None and factor * topk / experts > most:
        problems.append(
            f"upcycle.moe_expert_capacity_factor={factor:g} leaves room for every token "
            f"(x upcycle.moe_router_topk={topk} / upcycle.num_moe_experts={experts}); set it to null"
        )
    return problems


def _rank_problems(layout: ParallelConfig) -> list[str]:
    tp, ep = layout.tensor_model_parallel_size, layout.expert_model_parallel_size
    ranks = tp * layout.data_parallel_size
    problems = []
    if ranks % ep:
        problems.append(
            f"parallel.expert_model_parallel_size={ep} does not divide the {ranks} ranks of "
            f"parallel.data_parallel_size={layout.data_parallel_size} and tensor parallelism; use one of "
            f"{divisors(ranks)}"
        )
    if tp > 1 and (ep == 1 or not layout.sequence_parallel):
        problems.append(
            f"parallel.tensor_model_parallel_size={tp} does not divide moe_experts; set "
            f"parallel.expert_model_parallel_size to 2 or more and parallel.sequence_parallel=true"
        )
    return problems


def divisors(number: int) -> list[int]:
    """What divides a number, upwards."""
    return [size for size in range(1, number + 1) if number % size == 0]
