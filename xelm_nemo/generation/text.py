"""From prompts to text, with what the router said on the way."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TextStreamer

from xelm_nemo.errors import ConfigError
from xelm_nemo.generation.opened import open_model


@dataclass(frozen=True)
class Sampling:
    """How to choose the next token.

    Attributes:
        max_new_tokens: when to stop at the latest.
        temperature: 0 takes the likeliest token; above, tokens are drawn from p^(1 / temperature).
        top_k: how many of the likeliest tokens to draw from; 0 for all.
        top_p: the probability that the tokens to draw from have together.
        seed: of the draws.
        experts_per_token: how many experts the router keeps; None leaves it to the set.
    """

    max_new_tokens: int = 100
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 1234
    experts_per_token: int | None = None


@dataclass(frozen=True)
class Generated:
    """A prompt's continuation.

    Attributes:
        text: the prompt and what follows.
        tokens: each new token as text.
        log_w_TE: the log-weights of the experts when each was chosen.
    """

    text: str
    tokens: list[str]
    log_w_TE: Tensor


class Writer:
    """Continues prompts with an exported set."""

    def __init__(self, folder: Path, sampling: Sampling) -> None:
        """Open the set on the devices that there are.

        Raises:
            ArtifactError: the set is not whole.
            ConfigError: sampling that cannot work.
        """
        _check(sampling)
        opened = open_model(folder, experts_per_token=sampling.experts_per_token)
        self._sampling, self._tokenizer = sampling, opened.tokenizer
        self._model, self._device = opened.model, opened.device

    def write(self, prompts: Sequence[str], *, on_screen: bool = False) -> list[Generated]:
        """Continue every prompt, all in one batch.

        Args:
            prompts: the texts to continue; an empty one begins a text.
            on_screen: print the text of a single prompt as it grows.

        Raises:
            ConfigError: a prompt leaves no room in the context.
        """
        encoded = self._encode(prompts)
        torch.manual_seed(self._sampling.seed)
        streamer = TextStreamer(self._tokenizer, skip_special_tokens=True) if on_screen else None
        out = self._model.generate(**encoded, **self._how(), streamer=streamer, return_dict_in_generate=True)
        width, eos = encoded["input_ids"].shape[1], self._tokenizer.eos_token_id
        log_w_BSE = out.past_key_values.log_w_BSE
        found = []
        for ids_S, log_w_SE, start in zip(
            out.sequences, log_w_BSE, (encoded["attention_mask"] == 0).sum(1).tolist(), strict=True
        ):
            new = ids_S[width:].tolist()
            new = new[: new.index(eos)] if eos in new else new
            text = self._tokenizer.decode(ids_S[start : width + len(new)], skip_special_tokens=True)
            tokens = self._tokenizer.convert_ids_to_tokens(new)
            found.append(Generated(text, tokens, log_w_SE[width - 1 : width - 1 + len(new)]))
        return found

    def _encode(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Token ids with padding on the left, each text behind the token that begins a document."""
        tokenizer = self._tokenizer
        rows = [
            [tokenizer.eos_token_id, *tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]]
            for prompt in prompts
        ]
        longest, context = max(map(len, rows)), self._model.config.max_position_embeddings
        if longest + self._sampling.max_new_tokens > context:
            raise ConfigError(
                f"--max-new-tokens={self._sampling.max_new_tokens} and a prompt of {longest} tokens do not "
                f"fit the context of {context}; shorten one of them."
            )
        pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        padding = [longest - len(row) for row in rows]
        ids = [[pad] * count + row for count, row in zip(padding, rows, strict=True)]
        mask = [[0] * count + [1] * (longest - count) for count in padding]
        encoded = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
        return {name: tensor.to(self._device) for name, tensor in encoded.items()}

    def _how(self) -> dict[str, Any]:
        """The sampling in Hugging Face's terms."""
        sampling, tokenizer = self._sampling, self._tokenizer
        drawn = {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
        return {
            "max_new_tokens": sampling.max_new_tokens,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id or tokenizer.eos_token_id,
            "do_sample": sampling.temperature > 0,
            **(drawn if sampling.temperature > 0 else {}),
        }


def _check(sampling: Sampling) -> None:
    kept = sampling.experts_per_token
    wrong = [
        ("max-new-tokens", sampling.max_new_tokens, "1 or more", sampling.max_new_tokens >= 1),
        ("temperature", sampling.temperature, "0 or more", 0 <= sampling.temperature < float("inf")),
        ("top-k", sampling.top_k, "1 or more, or 0 for all tokens", sampling.top_k >= 0),
        ("top-p", sampling.top_p, "above 0 and at most 1", 0 < sampling.top_p <= 1),
        ("experts-per-token", kept, "1 or more", kept is None or kept >= 1),
    ]
    problems = [f"--{name}={value}: use {wanted}" for name, value, wanted, fits in wrong if not fits]
    if problems:
        raise ConfigError("; ".join(problems) + ".")
