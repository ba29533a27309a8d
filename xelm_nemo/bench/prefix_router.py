"""Router weights of every prefix of documents, against upstream's algorithm, which reads each prefix anew.

The peer is what upstream runs: scikit-learn's TfidfVectorizer with upstream's words, TruncatedSVD and
Normalizer, with the clusterer's own numbers in them, and torch for distances and weights. Its tokenizer is
Hugging Face's fast one; the one in Python decodes some ten times slower. All have one thread.

"weights_alone" is the floor: the rule, with all distances known beforehand. Where there is a GPU,
"ours_on_device" sums and weighs there, all documents at once; it takes hundreds to fill the card.

Shape letters: N documents, T tokens, K clusters, D dimensions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.pipeline import Pipeline
from torch import Tensor

from xelm_kernels.router_prefix import router_prefix
from xelm_nemo import device
from xelm_nemo.bench.corpora import jsonl_files, texts_of
from xelm_nemo.bench.featurise import NGRAMS, upstream_pipeline
from xelm_nemo.bench.registry import Case, Provider, Sizes
from xelm_nemo.clustering.clusterer import TfidfClusterer, fit_clusterer
from xelm_nemo.clustering.config import ClusteringConfig
from xelm_nemo.corpus.config import TokenizerConfig
from xelm_nemo.corpus.documents import Document
from xelm_nemo.corpus.tokenizer import encode_document, load_tokenizer, train_tokenizer
from xelm_nemo.errors import ConfigError
from xelm_nemo.router.pieces import pieces_of
from xelm_nemo.router.router import Router
from xelm_nemo.router.weights import router_weights

TRAINED = "trained"  # XGLM's kind, trained on the text
TEMPERATURE = 0.1


@dataclass
class Inputs:
    """Documents, what places them, and the weights of the last step."""

    documents: list[list[int]]
    tokenizer: Any
    clusterer: TfidfClusterer
    pipeline: Pipeline
    found: list[Tensor]
    expected: list[NDArray[np.float64]]


def make_inputs(sizes: Sizes) -> Inputs:
    """Documents of `tokens` tokens from all over a corpus, and a clusterer fitted on it.

    Raises:
        ConfigError: there is no such corpus or analyzer, or too little text.
    """
    if sizes["analyzer"] not in NGRAMS:
        raise ConfigError(f"analyzer={sizes['analyzer']!r} is not one; use one of {sorted(NGRAMS)}.")
    with TemporaryDirectory() as folder:
        texts = [text for path in jsonl_files(sizes["corpus"], Path(folder)) for text in texts_of(path)]
        tokenizer = _tokenizer(sizes, texts, Path(folder))
    config = ClusteringConfig(
        num_clusters=sizes["experts"],
        svd_dim=100,
        analyzer=sizes["analyzer"],
        ngram_range=list(NGRAMS[sizes["analyzer"]]),
        num_starts=1,
    )
    clusterer = fit_clusterer([Document(f"text|{n}", text, None) for n, text in enumerate(texts)], config)
    assert isinstance(clusterer, TfidfClusterer)
    clusterer.features.use_threads(1)
    documents = _documents(sizes, texts, tokenizer)
    return Inputs(documents, tokenizer, clusterer, upstream_pipeline(clusterer, sizes["analyzer"]), [], [])


def checked_inputs(sizes: Sizes) -> Inputs:
    """The same with what the formula gives."""
    inputs = make_inputs(sizes)
    inputs.expected = [_expected(inputs, ids) for ids in inputs.documents]
    return inputs


def _tokenizer(sizes: Sizes, texts: list[str], folder: Path) -> Any:
    if sizes["tokenizer"] != TRAINED:
        return load_tokenizer(sizes["tokenizer"])
    from transformers import XGLMTokenizerFast

    train_tokenizer(texts, TokenizerConfig(vocab_size=sizes["vocab"]), folder / "slow")
    return XGLMTokenizerFast.from_pretrained(str(folder / "slow"))


def _documents(sizes: Sizes, texts: list[str], tokenizer: Any) -> list[list[int]]:
    ids = encode_document(tokenizer, "\n".join(texts))
    count, length = sizes["documents"], sizes["tokens"]
    if len(ids) < length:
        raise ConfigError(f"tokens={length}: the corpus has {len(ids)}; give fewer, or a larger corpus.")
    return [ids[start : start + length] for start in np.linspace(0, len(ids) - length, count).astype(int)]


def _vectors(inputs: Inputs, ids: list[int]) -> NDArray[np.float64]:
    decode = inputs.tokenizer.decode
    how = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    vectors: NDArray[np.float64] = inputs.pipeline.transform(
        [decode(ids[:j], **how) for j in range(len(ids))]
    )
    return vectors


def _expected(inputs: Inputs, ids: list[int]) -> NDArray[np.float64]:
    """The formula in double precision throughout."""
    difference = _vectors(inputs, ids)[:, None] - inputs.clusterer.centroids.astype(np.float64)
    energy = (difference**2).sum(-1) ** 2
    return torch.softmax(torch.from_numpy(-energy / TEMPERATURE), -1).numpy()


def upstream_weights(inputs: Inputs, ids: list[int]) -> Tensor:
    """Upstream's weights of a document's prefixes, float32 [T, K]."""
    vectors_TD = torch.from_numpy(_vectors(inputs, ids)).float()
    distance_TK = (vectors_TD[:, None] - torch.from_numpy(inputs.clusterer.centroids)).square().sum(-1)
    return torch.softmax(-distance_TK.square() / TEMPERATURE, -1)


def _upstream(inputs: Inputs) -> Callable[[], None]:
    def step() -> None:
        inputs.found = [upstream_weights(inputs, ids) for ids in inputs.documents]

    return step


def _ours(inputs: Inputs) -> Callable[[], None]:
    router = Router(inputs.clusterer)
    router.prefix_weights(inputs.documents[0], inputs.tokenizer, TEMPERATURE)  # gets to know the tokenizer

    def step() -> None:
        inputs.found = [router.prefix_weights(ids, inputs.tokenizer, TEMPERATURE) for ids in inputs.documents]

    return step


def _weights_alone(inputs: Inputs) -> Callable[[], None]:
    router = Router(inputs.clusterer)
    distances = list(router.prefix_squared_distances(inputs.documents, inputs.tokenizer))

    def step() -> None:
        inputs.found = [router_weights(distance_TK, temperature=TEMPERATURE) for distance_TK in distances]

    return step


def ours_on_device(inputs: Inputs) -> Callable[[], None]:
    """Terms on the host, the rest in one launch for all documents; the lists of terms travel each time."""
    features, place = inputs.clusterer.features, device.device()
    pieces, router = pieces_of(inputs.tokenizer), features.prefix_router(inputs.clusterer.centroids)
    assert pieces is not None, "XGLM's kind of tokenizer is known"
    tables = (features.idf, np.ascontiguousarray(features.components.T), inputs.clusterer.centroids)
    on_device = [torch.from_numpy(table).to(place) for table in tables]
    lengths = [len(ids) for ids in inputs.documents]
    ends = np.cumsum(lengths)

    def step() -> None:
        ids = np.concatenate([np.asarray(ids, np.int32) for ids in inputs.documents])
        lists = router.terms(pieces.in_cpp, ids, ends.tolist(), num_threads=1)
        terms = [torch.from_numpy(each).to(place) for each in (np.array([0, *ends]), *lists)]
        inputs.found = list(router_prefix(*terms, *on_device, temperature=TEMPERATURE).split(lengths))

    return step


def errors(inputs: Inputs, _: Callable[[], None]) -> dict[str, float]:
    """The largest difference of a weight from the formula in double precision."""
    pairs = zip(inputs.found, inputs.expected, strict=True)
    largest = max(float(np.abs(found.double().cpu().numpy() - expected).max()) for found, expected in pairs)
    inputs.found = []
    return {"largest": largest}


def facts(inputs: Inputs) -> dict[str, Any]:
    """How many terms the clusterer has."""
    return {"terms": len(inputs.clusterer.features.terms)}


def providers(_: Sizes) -> list[Provider]:
    """Upstream's algorithm first."""
    ways = {"upstream": _upstream, "ours": _ours, "weights_alone": _weights_alone}
    if device.has_cuda():
        ways["ours_on_device"] = ours_on_device
    return [Provider(name, _alone(way), facts=facts) for name, way in ways.items()]


def _alone(prepare: Callable[[Inputs], Callable[[], None]]) -> Callable[[Inputs], Callable[[], None]]:
    def prepare_alone(inputs: Inputs) -> Callable[[], None]:
        torch.set_num_threads(1)
        return prepare(inputs)

    return prepare_alone


CASE = Case(
    name="prefix_router",
    sizes={
        "tokens": (2048, 256),
        "documents": (2,),
        "experts": (16,),
        "analyzer": ("word",),
        "corpus": ("udhr",),
        "tokenizer": (TRAINED,),
        "vocab": (8192,),
    },
    inputs=checked_inputs,
    providers=providers,
    errors=errors,
    floor="weights_alone",
)
