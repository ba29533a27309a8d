"""Log-probability of each target token under a weighted mixture of experts.

    out[t] = log sum_e exp( log_w[t, e] + logits[e, t, y_t] - lse[e, t] )

with lse[e, t] the log-sum-exp of expert e's logits over the vocabulary. The experts' [E, T, V] logits
are read once; no probability tensor is written.
Shape letters: E experts, T tokens, V vocabulary (padding columns may follow it in memory).
"""

import torch

from xelm_kernels.expert_rows import expert_rows, launch_expert_rows

# --- Reference -----------------------------------------------------------------


def ensemble_log_prob_ref(logits_ETV, log_w_TE, target_T):
    """The definition, in float64. Tests use it; keep it obvious."""
    log_p_ETV = torch.log_softmax(logits_ETV.double(), dim=-1)
    index = target_T.long().expand(log_p_ETV.shape[0], -1).unsqueeze(-1)
    log_p_ET = log_p_ETV.gather(-1, index).squeeze(-1)
    return torch.logsumexp(weighed(log_p_ET, log_w_TE), dim=0)


# --- Launch --------------------------------------------------------------------


def weighed(log_p_ET, log_w_TE):
    """log_w + log_p, and -inf where there is no weight, whatever the expert says there."""
    log_w_ET = log_w_TE.T.to(log_p_ET.dtype)
    return (log_p_ET + log_w_ET).masked_fill(log_w_ET == -torch.inf, -torch.inf)


def check_inputs(name, logits_ETV, log_w_TE, target_T, vocab_size):
    """Refuse shapes that do not fit and inputs that want a gradient."""
    E, T, V = logits_ETV.shape
    if log_w_TE.shape != (T, E) or (target_T is not None and target_T.shape != (T,)):
        target = "" if target_T is None else f" and target [{T}]"
        found = "" if target_T is None else f" and {list(target_T.shape)}"
        raise ValueError(
            f"{name}: logits are [E={E}, T={T}, V={V}], so log_w must be "
            f"[{T}, {E}]{target}; got {list(log_w_TE.shape)}{found}."
        )
    if not 0 < vocab_size <= V:
        raise ValueError(
            f"{name}: vocab_size={vocab_size} does not fit logits of [E={E}, T={T}, V={V}]; "
            f"use a number from 1 to {V}."
        )
    if torch.is_grad_enabled() and (logits_ETV.requires_grad or log_w_TE.requires_grad):
        raise NotImplementedError(f"{name} has no backward; call it under torch.no_grad().")


def outside(target_T, vocab_size):
    """Where targets are no tokens. A GPU cannot raise, so their result becomes NaN there.

    Raises:
        ValueError: there is one, and it is on a CPU.
    """
    outside_T = (target_T < 0) | (target_T >= vocab_size)
    if not target_T.is_cuda and outside_T.any():
        t = int(outside_T.int().argmax())
        raise ValueError(
            f"ensemble_log_prob: target[{t}]={int(target_T[t])} is outside the vocabulary; "
            f"give token ids from 0 to {vocab_size - 1}."
        )
    return outside_T


def mix_rows(lse_ET, picked_ET, log_w_TE):
    """The mixture's log-probability of the targets, [T], from what `expert_rows` gives."""
    return torch.logsumexp(weighed(picked_ET - lse_ET, log_w_TE), dim=0)


def _launch(logits_ETV, log_w_TE, target_T, vocab_size=None):
    V = logits_ETV.shape[-1] if vocab_size is None else vocab_size
    mixed_T = mix_rows(*launch_expert_rows(logits_ETV[..., :V], log_w_TE, target_T), log_w_TE)
    return mixed_T.masked_fill((target_T < 0) | (target_T >= V), torch.nan)


# --- Public --------------------------------------------------------------------


def ensemble_log_prob(logits_ETV, log_w_TE, target_T, *, vocab_size=None):
    """Mixture log-probability of each target token. The formula is in the module docstring.

    Args:
        logits_ETV: every expert's logits, any floating dtype; -inf forbids a token.
        log_w_TE: log of the router's weights; -inf leaves an expert out, and its logits are not read.
        target_T: token ids, any integer dtype.
        vocab_size: columns of `logits_ETV` that are tokens; those after them are padding and are
            not read. None: all of them.

    Returns:
        Natural-log probabilities, float32 [T]; NaN where an expert with weight forbids every token.

    Raises:
        ValueError: shapes that do not fit each other, or, on a CPU, a target outside the vocabulary
            (on a GPU its result is NaN).
        NotImplementedError: an input needs a gradient; there is no backward.
    """
    vocab_size = logits_ETV.shape[-1] if vocab_size is None else vocab_size
    check_inputs("ensemble_log_prob", logits_ETV, log_w_TE, target_T, vocab_size)
    outside_T = outside(target_T, vocab_size)
    wide = logits_ETV if logits_ETV.is_cuda else logits_ETV.double()
    rows = expert_rows(wide[..., :vocab_size], log_w_TE, target_T)
    return mix_rows(*rows, log_w_TE).masked_fill(outside_T, torch.nan).float()
