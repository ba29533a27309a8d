"""Log-probabilities of the targets alone under the mixture, against upstream's arithmetic.

GB/s count the logits, read once.
"""

import torch
from torch import Tensor

from xelm_kernels.ensemble_log_prob import ensemble_log_prob, ensemble_log_prob_ref
from xelm_nemo.bench.mixture import SIZES, compared, errors_against, make_inputs
from xelm_nemo.bench.registry import Case, Provider, Sizes


def upstream_targets(logits_ETV: Tensor, log_w_TE: Tensor, target_T: Tensor) -> Tensor:
    """Upstream's arithmetic: each expert's softmax in float32, its target, the log of the weighted sum."""
    p_ETV = torch.softmax(logits_ETV.float(), dim=-1)
    p_ET = p_ETV.gather(-1, target_T.expand(len(p_ETV), -1)[..., None])[..., 0]
    return (p_ET * log_w_TE.exp().T).sum(0).log()


def providers(sizes: Sizes) -> list[Provider]:
    """Upstream's arithmetic first, called eager as torch runs it so."""
    num_bytes = 2.0 * sizes["experts"] * sizes["tokens"] * sizes["vocab"]
    return compared(upstream_targets, ensemble_log_prob, num_bytes)


CASE = Case("target_mixture", SIZES, make_inputs, providers, errors_against(ensemble_log_prob_ref))
