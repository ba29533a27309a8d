"""An expert set as one Hugging Face model: `XelmForCausalLM`, with `generate` and all that goes with it.

Its logits are log-probabilities of the mixture, log p(y) = logsumexp_e(log w_e + log p_e(y)), so that greedy
search, sampling, top-k, top-p and beams all work on the mixture.
Shape letters: B texts, S tokens so far, P tokens to predict from (the last ones), E experts, V vocabulary.
"""

import copy
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationMixin,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from xelm_nemo import device as devices
from xelm_nemo.artifacts import MANIFEST
from xelm_nemo.ensemble.mixture import next_log_probs
from xelm_nemo.ensemble.options import logit_average_log_probs
from xelm_nemo.ensemble.shelf import Shelf
from xelm_nemo.errors import ArtifactError, ConfigError
from xelm_nemo.generation.cache import MixtureCache
from xelm_nemo.generation.routing import Routing, routing_of
from xelm_nemo.generation.siblings import open_expert, shared_settings


class XelmConfig(PretrainedConfig):
    """What is in an exported set, and how its experts are weighed.

    Attributes:
        experts: their folders, relative to the set's, in cluster order.
        temperature: of the router.
        rule: of the router, "upstream" or "paper".
        experts_per_token: how many the router keeps; None keeps all.
        weights: of the experts, the same at every token; None asks the router.
        clusterer: which one the experts are of, as `routing.mark_of` says it; None: nobody looks.
    """

    model_type = "xelm"

    def __init__(
        self,
        experts: Sequence[str] = (),
        vocab_size: int = 0,
        max_position_embeddings: int = 0,
        temperature: float = 0.1,
        rule: str = "upstream",
        experts_per_token: int | None = None,
        weights: Sequence[float] | None = None,
        clusterer: str | None = None,
        **kwargs: Any,
    ) -> None:
        """The settings of the mixture; the others are Hugging Face's."""
        self.experts, self.weights = list(experts), None if weights is None else list(weights)
        self.vocab_size, self.max_position_embeddings = vocab_size, max_position_embeddings
        self.router = {"temperature": temperature, "rule": rule} | kwargs.pop("router", {})
        self.experts_per_token, self.clusterer = experts_per_token, clusterer
        self.num_hidden_layers = kwargs.pop("num_hidden_layers", 0)  # the mixture's own: experts have layers
        super().__init__(**kwargs)


class XelmForCausalLM(PreTrainedModel, GenerationMixin):
    """The mixture of an exported set's experts, weighed anew at every token as the text grows.

    It predicts what evaluation measures: the router lags by one token, as in the programs of c-BTM and X-ELM.
    An expert that no text of a batch gives weight is not run; once it is needed it catches up. There is no
    training: weights take no gradient.
    """

    config_class = XelmConfig
    main_input_name = "input_ids"
    _supports_sdpa = True

    def __init__(self, config: XelmConfig, experts: Sequence[PreTrainedModel], routing: Routing) -> None:
        """Put experts and router together; `from_pretrained` does it from a folder."""
        super().__init__(config)
        self.experts = nn.ModuleList(experts).requires_grad_(False).eval()
        self.routing = routing
        self.source: Path | None = None  # the folder that it was opened from
        self._shelf: Shelf | None = None

    @classmethod
    def from_pretrained(cls, folder: str | Path, *_: Any, config: Any = None, **kwargs: Any) -> Any:
        """Open an exported set: the folder that holds `config.json` of model_type "xelm".

        Args:
            folder: the set's.
            config: settings other than the folder's.
            **kwargs: what each expert's own `from_pretrained` takes, such as `dtype`.

        Raises:
            ArtifactError: an expert is missing or damaged, or the clusterer or the tokenizer.
            ConfigError: experts that differ in vocabulary or shape, or that the clusterer is not of.
        """
        folder = Path(folder)
        config = config or XelmConfig.from_pretrained(folder)
        missing = [name for name in config.experts if not (folder / name).is_dir()]
        if missing or not config.experts:
            raise ArtifactError(f"{folder} lacks the experts {missing}; export the whole set again.")
        shared_settings([folder / name for name in config.experts])
        experts = [open_expert(folder / name, **kwargs) for name in config.experts]
        model = cls(config, experts, routing_of(folder, config))
        model.source = folder
        if cls.can_generate():
            model.generation_config.update(**experts[0].generation_config.to_diff_dict())
        return model

    def save_pretrained(self, folder: str | Path, **kwargs: Any) -> None:
        """Write the set into one folder, experts and router included, from which it opens again.

        Args:
            folder: to be made.
            **kwargs: what each expert's own `save_pretrained` takes.
        """
        folder = Path(folder)
        if self.source is not None:
            shutil.copytree(self.source, folder, ignore=shutil.ignore_patterns(MANIFEST), dirs_exist_ok=True)
        experts: Any = self.experts
        for index, expert in enumerate(experts):
            expert.save_pretrained(folder / f"expert{index}", **kwargs)
        config = copy.deepcopy(self.config)
        config.experts = [f"expert{index}" for index in range(len(self.experts))]
        config.save_pretrained(folder)

    def place(self, places: Sequence[torch.device], room_bytes: Sequence[int] | None = None) -> None:
        """Spread the experts over devices, or let them take turns where these are too small; see `Shelf`."""
        room_bytes = [devices.free_bytes(place) for place in places] if room_bytes is None else room_bytes
        self._shelf = Shelf(list(self.experts), places, room_bytes)

    @torch.no_grad()
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        labels: Tensor | None = None,
        use_cache: bool | None = True,
        logits_to_keep: int = 0,
        averaged_BE: Tensor | None = None,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """Log-probabilities of the next token, float32 [B, P, V], after the last P tokens or after all given.

        Args:
            input_ids: the tokens that follow those of the cache, [B, new tokens].
            attention_mask: 1 for text and 0 for padding, of the whole text, [B, S].
            past_key_values: a `MixtureCache`, or an empty cache.
            labels: targets as elsewhere in Hugging Face (-100: none); with them `loss` is their mean in nats.
            use_cache: whether to return the cache.
            logits_to_keep: P; 0 is all new tokens.
            averaged_BE: log-weights of the experts for each text, to average their logits by, as X-ELM's
                few-shot evaluation does; None mixes probabilities, by the set's own weights.

        Raises:
            ConfigError: a text is longer than the context.
        """
        cache = past_key_values
        if not isinstance(cache, MixtureCache):
            if cache is not None and cache.get_seq_length():
                raise ValueError("past_key_values is of another model; leave it out.")
            cache = MixtureCache(len(self.experts), len(input_ids), input_ids.device)
        cache.extend(input_ids, attention_mask)
        _check_room(cache, self.config.max_position_embeddings)
        kept = min(logits_to_keep or input_ids.shape[1], input_ids.shape[1])
        log_p_BPV = self._mix(
            cache,
            self._route(cache, kept, averaged_BE),
            next_log_probs if averaged_BE is None else logit_average_log_probs,
        )
        loss = None if labels is None else _loss(log_p_BPV, labels)
        return CausalLMOutputWithPast(
            loss=loss, logits=log_p_BPV, past_key_values=cache if use_cache else None
        )

    def _route(self, cache: MixtureCache, kept: int, given_BE: Tensor | None) -> Tensor:
        """Log-weights [B, P, E]; NaN at padding, which predicts nothing."""
        log_w_BPE = cache.log_w_BSE[:, -kept:]
        is_text_BS = cache.mask_BS.bool()
        if given_BE is not None:
            wanted_BP1 = is_text_BS[:, -kept:, None].cpu()
            return log_w_BPE.copy_(given_BE[:, None].where(wanted_BP1, torch.nan))
        for ids_S, is_text_S, log_w_PE in zip(cache.ids_BS, is_text_BS, log_w_BPE, strict=True):
            wanted_P = is_text_S[-kept:].cpu()
            if wanted_P.any():
                ids = ids_S[is_text_S].tolist()
                log_w_PE[wanted_P] = self.routing.log_weights(ids, len(ids) - int(wanted_P.sum()))
        return log_w_BPE

    def _mix(self, cache: MixtureCache, log_w_BPE: Tensor, mix: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        batch_size, kept, _ = log_w_BPE.shape
        needed = (log_w_BPE > -math.inf).flatten(0, 1).any(0).nonzero()[:, 0].tolist()
        logits = [self._run(cache, *visit, kept) for visit in self._visit(needed)]
        logits_ENV = torch.stack([each.to(logits[0].device) for each in logits]).flatten(1, 2)
        log_w_NE = log_w_BPE[..., needed].flatten(0, 1).nan_to_num(0.0, neginf=-math.inf)
        mixed_NV = mix(logits_ENV, log_w_NE.to(logits_ENV.device))
        return mixed_NV.view(batch_size, kept, -1)

    def _visit(self, chosen: Sequence[int]) -> Iterator[tuple[int, Any, torch.device]]:
        if self._shelf is not None:
            yield from self._shelf.visit(chosen)
        else:
            for index in chosen:
                expert: Any = self.experts[index]
                yield index, expert, expert.device

    def _run(self, cache: MixtureCache, index: int, expert: Any, place: torch.device, kept: int) -> Tensor:
        """Logits [B, P, V] of one expert, fed with every token that it has not seen."""
        own = cache.experts[index]
        seen = own.get_seq_length()
        position_BS = (cache.mask_BS.cumsum(1) - 1).clamp(min=0)
        hidden_BSH = expert.base_model(
            input_ids=cache.ids_BS[:, seen:].to(place),
            attention_mask=cache.mask_BS.to(place),
            position_ids=position_BS[:, seen:].to(place, copy=True),  # XGLM adds its offset in place
            past_key_values=own,
            use_cache=True,
        ).last_hidden_state
        logits: Tensor = expert.get_output_embeddings()(hidden_BSH[:, -kept:])
        return logits


def _check_room(cache: MixtureCache, context: int) -> None:
    """XGLM would go on past the positions that it knows, and OPT look them up outside its table."""
    if cache.mask_BS.shape[1] <= context:  # padding and all, and nobody waits for the device to say so
        return
    if (longest := int(cache.mask_BS.sum(1).max())) > context:
        raise ConfigError(
            f"a text of {longest} tokens does not fit the context of {context}; read it in windows, as "
            "`evaluate` does, or shorten it."
        )


def _loss(log_p_BSV: Tensor, labels_BS: Tensor) -> Tensor:
    target_BT = labels_BS[:, 1:].to(log_p_BSV.device)
    is_scored_BT = target_BT != -100
    log_p_BT = log_p_BSV[:, :-1].gather(-1, target_BT.clamp(min=0)[..., None])[..., 0]
    return -log_p_BT[is_scored_BT].mean()


AutoConfig.register(XelmConfig.model_type, XelmConfig, exist_ok=True)
AutoModelForCausalLM.register(XelmConfig, XelmForCausalLM, exist_ok=True)
