"""Two small random experts with a clusterer and a tokenizer, exported as a set."""

import torch

from tests.helpers.prefix_definition import prefix_squared_distances
from tests.helpers.random_xglm import GELU, randomise
from xelm_nemo.clustering.clusterer import Clusterer, fit_clusterer
from xelm_nemo.clustering.config import ClusteringConfig
from xelm_nemo.corpus.config import TokenizerConfig
from xelm_nemo.corpus.documents import Document
from xelm_nemo.corpus.tokenizer import load_tokenizer, train_tokenizer
from xelm_nemo.ensemble.mixture import mixture_log_prob
from xelm_nemo.generation.folder import write_set
from xelm_nemo.router.config import RouterConfig
from xelm_nemo.router.weights import router_log_weights

TEXTS = [
    *(
        "all human beings are born free",
        "human beings have dignity and rights",
        "everyone has a right to rest",
    ),
    *("viele menschen sind frei geboren", "menschen haben wuerde und rechte", "jeder hat ein recht auf ruhe"),
]
ROUTER = RouterConfig(temperature=0.3)


def fit(num_clusters=2, method="tfidf"):
    """A clusterer of the texts."""
    documents = [Document(f"x|{n}", text, "de" if n > 2 else "en") for n, text in enumerate(TEXTS)]
    config = ClusteringConfig(method=method, num_clusters=num_clusters, svd_dim=3, num_starts=1)
    return fit_clusterer(documents, config)


def write(root, name="set", *, experts=("expert0", "expert1"), clusterer="clusterer"):
    """The set of some exported experts."""
    folder = root / name
    folder.mkdir()
    write_set(
        folder,
        [root / expert for expert in experts],
        clusterer=root / clusterer,
        tokenizer=root / "tokenizer",
        router=ROUTER,
        home=folder,
    )
    return folder


def export_two(root):
    """Fill a folder: expert0, expert1, clusterer, tokenizer, and the set of them."""
    from transformers import XGLMConfig, XGLMForCausalLM

    train_tokenizer(TEXTS, TokenizerConfig(vocab_size=80), root / "tokenizer")
    words = len(load_tokenizer(root / "tokenizer"))
    torch.manual_seed(3)
    for name in ("expert0", "expert1"):
        config = XGLMConfig(vocab_size=words, max_position_embeddings=64, **GELU)
        randomise(XGLMForCausalLM(config)).save_pretrained(root / name)
        load_tokenizer(root / "tokenizer").save_pretrained(root / name)
    fit().save(root / "clusterer")
    write(root)
    return root


def evaluations_log_prob(root, ids):
    """What evaluation gives a text: the experts' log-probabilities, and weights for every token at once."""
    from transformers import AutoModelForCausalLM

    target = torch.tensor(ids[1:])
    rows = []
    for name in ("expert0", "expert1"):
        with torch.no_grad():
            log_p = torch.log_softmax(
                AutoModelForCausalLM.from_pretrained(root / name)(torch.tensor([ids[:-1]])).logits[0], -1
            )
        rows.append(log_p.gather(-1, target[:, None])[:, 0])
    distance = prefix_squared_distances(
        ids[:-1], load_tokenizer(root / "tokenizer"), Clusterer.load(root / "clusterer")
    )
    return mixture_log_prob(torch.stack(rows), router_log_weights(distance, temperature=ROUTER.temperature))
