"""What a model or an ensemble takes to predict: operations of a token, and memory of weights."""

from collections.abc import Sequence

from xelm_nemo.checkpoint.facts import ModelFacts
from xelm_nemo.checkpoint.lazy import DTYPES
from xelm_nemo.ensemble.rules import SCORE_RULES, Ensemble
from xelm_nemo.evaluation.result import Cost
from xelm_nemo.model.config import num_parameters
from xelm_nemo.model.flops import forward_flops


def cost_of(facts: ModelFacts, seq_length: int) -> Cost:
    """What one model takes, of a sparse one a token's own moe_experts and the memory of all."""
    size = DTYPES[facts.dtype].itemsize
    weights = num_parameters(facts.shape, facts.vocab_size)
    return Cost(forward_flops(facts.shape, facts.vocab_size, seq_length), size * weights)


def ensemble_cost(ensemble: Ensemble, experts: Sequence[Cost]) -> Cost:
    """What alike experts take together: those that have weight compute, all of them are in memory."""
    running = len(experts)
    if ensemble.rule == "top1_language":
        running = 1
    elif ensemble.rule not in SCORE_RULES and ensemble.top_k is not None:
        running = min(ensemble.top_k, running)
    return Cost(running * experts[0].flops_per_token, sum(cost.weight_bytes for cost in experts))
