"""An ensemble's evaluation, all experts on one card, against upstream's algorithm on the same one.

Upstream takes a document at a time: its prefixes are decoded and vectorised anew (bench/prefix_router.py),
every expert gives all its logits, softmax in float32, and the targets' probabilities are mixed. Both run the
same random models, in memory beforehand. Ours is what the command `evaluate` calls, with the router, files
of log-probabilities and the report's figures. "forward" is the floor: the experts' passes alone;
"forward_padded" are the same with documents padded to one length, where they would be packed.

Shape letters: T tokens, V vocabulary, E experts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from xelm_nemo import device
from xelm_nemo.bench import prefix_router
from xelm_nemo.bench.registry import Case, Provider, Sizes
from xelm_nemo.config.compose import compose
from xelm_nemo.evaluation.config import EvaluationConfig
from xelm_nemo.evaluation.documents import HeldOutDocument, encode_documents
from xelm_nemo.evaluation.evidence import Text
from xelm_nemo.evaluation.passes import Pass
from xelm_nemo.evaluation.perplexity import Models, evaluate_ensemble
from xelm_nemo.evaluation.scoring import ModelSource, Scores
from xelm_nemo.model.config import ParallelConfig
from xelm_nemo.model.documents import can_pack, takes_packed
from xelm_nemo.model.gpt import DecoderModel, build_model
from xelm_nemo.router.config import RouterConfig

DTYPE = torch.bfloat16
CONFIG = EvaluationConfig(rules=["clustering"], top_k=[None], each_expert=False)


@dataclass
class Inputs:
    """Documents and their router, experts on the device, and what the last step found."""

    routing: prefix_router.Inputs
    experts: list[DecoderModel]
    seq_length: int
    nats: float | None = None  # of all documents
    expected: float | None = None  # upstream's

    @property
    def documents(self) -> list[HeldOutDocument]:
        """A text for each document's tokens; its number, for `encode` need not read it."""
        return [HeldOutDocument(str(n)) for n in range(len(self.routing.documents))]

    def encode(self, text: str) -> list[int]:
        """The tokens of a document of `documents`."""
        return self.routing.documents[int(text)]

    @property
    def can_pack(self) -> bool:
        """Whether evaluation may pack documents."""
        return can_pack(self.experts[0].shape, DTYPE)

    def sources(self, *, packs: bool) -> list[ModelSource]:
        """The experts as evaluation takes them."""
        return [
            ModelSource(f"expert{n}", str(n), partial(getattr, expert, "target_log_prob"), packs=packs)
            for n, expert in enumerate(self.experts)
        ]


def make_inputs(sizes: Sizes) -> Inputs:
    """Documents of `shortest` to `tokens` scored tokens, a clusterer, and experts with random weights."""
    tokens = sizes["tokens"]
    routing = prefix_router.make_inputs({**sizes, "tokens": tokens + 1, "analyzer": "word"})
    lengths = np.linspace(min(sizes["shortest"], tokens), tokens, sizes["documents"]).astype(int) + 1
    routing.documents = [ids[:length] for ids, length in zip(routing.documents, lengths, strict=True)]
    config = compose([f"model={sizes['model']}", "corpus=udhr", "seed_model=random"])
    words = config.seed_model.vocab_size or sizes["vocab"]
    torch.manual_seed(1)
    experts = [
        build_model(config.model, ParallelConfig(), vocab_size=words, dtype=DTYPE).eval()
        for _ in range(sizes["experts"])
    ]
    return Inputs(routing, experts, tokens)


def _upstream(inputs: Inputs) -> Callable[[], None]:
    @torch.inference_mode()
    def nats(ids: list[int]) -> float:
        weight_TE = prefix_router.upstream_weights(inputs.routing, ids[:-1])
        row = torch.tensor(ids, device=device.device())
        p_ET = torch.stack([_target_probabilities(expert, row) for expert in inputs.experts])
        return -float((p_ET * weight_TE.T.to(p_ET.device)).sum(0).log().double().sum())

    def step() -> None:
        inputs.nats = sum(map(nats, inputs.routing.documents))
        inputs.expected = inputs.nats

    return step


def _target_probabilities(expert: DecoderModel, row: Tensor) -> Tensor:
    p_TV = torch.softmax(expert.logits(row[None, :-1])[0].float(), dim=-1)
    return p_TV.gather(-1, row[1:, None])[:, 0]


def _ours(inputs: Inputs) -> Callable[[], None]:
    routing = inputs.routing
    text = Text(routing.tokenizer, inputs.encode, routing.clusterer, None)
    models = Models(inputs.sources(packs=inputs.can_pack), None, inputs.seq_length, {})
    router = RouterConfig(temperature=prefix_router.TEMPERATURE)

    def step() -> None:
        with TemporaryDirectory() as folder:
            [result] = evaluate_ensemble(
                {"documents": inputs.documents}, models=models, text=text, router=router, config=CONFIG,
                folder=Path(folder), device=device.device(),
            )  # fmt: skip
        inputs.nats = result.headline.overall.nats

    return step


def _forward(inputs: Inputs, *, padded: bool = False) -> Callable[[], None]:
    encoded = encode_documents(
        inputs.documents, encode=inputs.encode, tokenizer=inputs.routing.tokenizer, seq_length=None
    )
    how = Pass(inputs.seq_length, None, CONFIG.batch_tokens, device.device(), Path())

    def step() -> None:
        for source in inputs.sources(packs=inputs.can_pack and not padded):
            Scores(source, encoded, how).compute(source.load())

    return step


def errors(inputs: Inputs, _: Callable[[], None]) -> dict[str, float]:
    """How far the documents' log-probability is from upstream's, relatively."""
    found, inputs.nats = inputs.nats, None
    if found is None or inputs.expected is None:
        return {}
    return {"relative": abs(found / inputs.expected - 1)}


def providers(_: Sizes) -> list[Provider]:
    """Upstream's algorithm first."""
    forward = [Provider("forward", _forward)]
    if takes_packed():
        forward.append(Provider("forward_padded", partial(_forward, padded=True)))
    return [Provider("upstream", _upstream), Provider("ours", _ours), *forward]


CASE = Case(
    name="evaluate",
    sizes={
        "experts": (8,),
        "documents": (8,),
        "tokens": (2048,),
        "shortest": (2048,),
        "model": ("xglm_564m",),
        "corpus": ("udhr",),
        "tokenizer": (prefix_router.TRAINED,),
        "vocab": (8192,),
    },
    inputs=make_inputs,
    providers=providers,
    errors=errors,
    floor="forward",
    is_job=True,
)
