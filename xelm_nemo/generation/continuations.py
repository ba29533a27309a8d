"""What a mixture says of given continuations, and how it continues texts itself, many at a time.

Shape letters: B texts of a batch, S tokens, P tokens to predict (the last ones), C a piece of these,
N pairs, E experts.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from xelm_nemo.ensemble.batches import batches
from xelm_nemo.ensemble.options import sequence_scores
from xelm_nemo.errors import ConfigError
from xelm_nemo.generation.cache import MixtureCache
from xelm_nemo.generation.opened import Opened
from xelm_nemo.generation.routing import FixedRouting
from xelm_nemo.router.weights import keep_top_k

Pair = tuple[Sequence[int], Sequence[int]]  # context and continuation, token ids
_LOGITS_AT_ONCE = 1 << 28  # 1 GiB in float32, all experts together


@torch.no_grad()
def score_continuations(
    opened: Opened,
    pairs: Sequence[Pair],
    *,
    batch_tokens: int,
    batch_size: int | None = None,
    averaged_NE: Tensor | None = None,
) -> list[tuple[float, bool]]:
    """Log-probability of each continuation given its context, and whether greedy search would give it.

    Contexts that leave too little room in the model's own are cut off on the left.

    Args:
        opened: the model.
        pairs: contexts, of one token or more, and continuations; an empty one is certain.
        batch_tokens: of a forward pass, padding included.
        batch_size: the most texts of a forward pass.
        averaged_NE: log-weights of the experts for each pair, to average their logits by; None mixes
            probabilities.

    Returns:
        for each pair nats, summed over the continuation, and whether every token of it is the likeliest.

    Raises:
        ConfigError: a continuation is longer than the model's context.
    """
    if (longest := max((len(continuation) for _, continuation in pairs), default=0)) > opened.context:
        raise ConfigError(
            f"a continuation of {longest} tokens does not fit the context of {opened.context}; leave "
            "it out of the task's data."
        )
    wanted = [n for n, (_, continuation) in enumerate(pairs) if continuation]
    rows = [[*pairs[n][0], *pairs[n][1]][-(opened.context + 1) :] for n in wanted]
    found = dict.fromkeys(range(len(pairs)), (0.0, True))
    for batch in batches([len(row) - 1 for row in rows], batch_tokens, batch_size):
        encoded = left_padded([rows[n][:-1] for n in batch], opened)
        members = [wanted[n] for n in batch]
        averaged_BE = None if averaged_NE is None else averaged_NE[members]
        scores = _score(opened, encoded, [pairs[n][1] for n in members], averaged_BE)
        found |= dict(zip(members, scores, strict=True))
    return [found[n] for n in range(len(pairs))]


def score_sequences(
    opened: Opened,
    pairs: Sequence[Pair],
    *,
    top_k: int | None,
    batch_tokens: int,
    batch_size: int | None = None,
) -> list[float]:
    """Log-probability of each continuation, the experts mixed once, by their weights for its context (c-BTM).

    Args:
        opened: the model, whose router keeps all experts.
        pairs: contexts and continuations.
        top_k: weights kept, without renormalising; None keeps all.
        batch_tokens: of a forward pass, padding included.
        batch_size: the most texts of a forward pass.

    Returns:
        nats for each pair.
    """
    model = opened.model
    routing, experts = model.routing, range(len(model.experts))
    log_w_NE, log_p_EN = _context_log_weights(opened, pairs), []
    try:
        for expert in experts:
            model.routing = FixedRouting([float(expert == other) for other in experts], top_k=None)
            scores = score_continuations(opened, pairs, batch_tokens=batch_tokens, batch_size=batch_size)
            log_p_EN.append([nats for nats, _ in scores])
    finally:
        model.routing = routing
    log_p_NE1 = torch.tensor(log_p_EN, dtype=torch.float64).T[..., None]
    return [
        float(sequence_scores(log_p_E1, log_w_E, top_k))
        for log_p_E1, log_w_E in zip(log_p_NE1, log_w_NE, strict=True)
    ]


def score_averaged(
    opened: Opened,
    pairs: Sequence[Pair],
    *,
    top_k: int | None,
    batch_tokens: int,
    batch_size: int | None = None,
) -> list[tuple[float, bool]]:
    """As `score_continuations`, the experts' logits averaged by their weights for the context (X-ELM).

    Args:
        opened: the model, whose router keeps all experts.
        pairs: contexts and continuations.
        top_k: experts kept, renormalised; None keeps all.
        batch_tokens: of a forward pass, padding included.
        batch_size: the most texts of a forward pass.
    """
    log_w_NE = keep_top_k(_context_log_weights(opened, pairs), top_k)
    return score_continuations(
        opened, pairs, batch_tokens=batch_tokens, batch_size=batch_size, averaged_NE=log_w_NE
    )


def continue_texts(
    opened: Opened, rows: Sequence[Sequence[int]], *, stops: Sequence[str], max_new_tokens: int, **how: Any
) -> list[str]:
    """Continue texts, one batch of them, each up to the first of the stops.

    Args:
        opened: the model.
        rows: the texts' token ids.
        stops: strings that end a continuation, and are no part of it.
        max_new_tokens: when to stop at the latest.
        **how: what Hugging Face's `generate` takes, such as `do_sample`.
    """
    encoded = left_padded(rows, opened)
    width, tokenizer = encoded["input_ids"].shape[1], opened.tokenizer
    out = opened.model.generate(
        **encoded,
        max_new_tokens=max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=opened.pad_id,
        stopping_criteria=StoppingCriteriaList([_Stops(tokenizer, stops, width)]),
        **how,
    )
    texts = [tokenizer.decode(row[width:], skip_special_tokens=True) for row in out]
    return [_before(stops, text) for text in texts]


def left_padded(rows: Sequence[Sequence[int]], opened: Opened) -> dict[str, Tensor]:
    """Token ids [B, S], padding first so that all texts end together, and where they are text."""
    longest = max(map(len, rows))
    ids = [[opened.pad_id] * (longest - len(row)) + list(row) for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    encoded = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    return {name: tensor.to(opened.device) for name, tensor in encoded.items()}


def _context_log_weights(opened: Opened, pairs: Sequence[Pair]) -> Tensor:
    """Log-weights of the experts for each context as a whole, [N, E]."""
    # Weights lag by one token: those for the whole context serve the second token after it.
    rows = [opened.model.routing.log_weights([*ids, ids[-1]], len(ids))[0] for ids, _ in pairs]
    return torch.stack(rows) if rows else torch.empty(0, len(opened.model.experts))


def _score(
    opened: Opened,
    encoded: dict[str, Tensor],
    targets: Sequence[Sequence[int]],
    averaged_BE: Tensor | None,
) -> list[tuple[float, bool]]:
    """As `score_continuations`, of one batch whose rows end one token before their continuations do."""
    kept = max(map(len, targets))
    target_BP = torch.tensor([[-1] * (kept - len(target)) + list(target) for target in targets])
    log_p_BP, best_BP = _target_log_probs(opened, encoded, target_BP, averaged_BE)
    wanted_BP = target_BP >= 0
    nats_B = log_p_BP.double().where(wanted_BP, 0.0).sum(1)
    is_greedy_B = ((best_BP == target_BP) | ~wanted_BP).all(1)
    return list(zip(nats_B.tolist(), is_greedy_B.tolist(), strict=True))


def _target_log_probs(
    opened: Opened, encoded: dict[str, Tensor], target_BP: Tensor, averaged_BE: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Log-probability and the likeliest token of the last P positions, [B, P] each, on the CPU.

    Long continuations go through in pieces, so that a vocabulary of 256k times a context is never in memory.
    """
    ids_BS, mask_BS = encoded["input_ids"], encoded["attention_mask"]
    batch_size, kept = target_BP.shape
    experts = len(opened.model.experts)
    piece = max(1, _LOGITS_AT_ONCE // (batch_size * experts * opened.model.config.vocab_size))
    start, done = ids_BS.shape[1] - kept, 0
    cache: MixtureCache | None = None
    found = []
    for first in range(start, ids_BS.shape[1], piece):
        end = min(first + piece, ids_BS.shape[1])
        out = opened.model(
            input_ids=ids_BS[:, done:end],
            attention_mask=mask_BS[:, :end],
            past_key_values=cache,
            logits_to_keep=end - first,
            averaged_BE=averaged_BE,
        )
        cache, done = out.past_key_values, end
        target_BC = target_BP[:, first - start : end - start].clamp(min=0).to(out.logits.device)
        log_p_BC = out.logits.gather(-1, target_BC[..., None])[..., 0]
        found.append((log_p_BC.cpu(), out.logits.argmax(-1).cpu()))
    log_p, best = zip(*found, strict=True)
    return torch.cat(log_p, 1), torch.cat(best, 1)


class _Stops(StoppingCriteria):
    """Says which texts of a batch have one of the strings in what was generated."""

    def __init__(self, tokenizer: Any, stops: Sequence[str], width: int) -> None:
        self._tokenizer, self._stops, self._width = tokenizer, stops, width

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        texts = self._tokenizer.batch_decode(input_ids[:, self._width :], skip_special_tokens=True)
        done = [any(stop in text for stop in self._stops) for text in texts]
        return torch.tensor(done, device=input_ids.device)


def _before(stops: Sequence[str], text: str) -> str:
    return min((text.split(stop)[0] for stop in stops), key=len, default=text)
