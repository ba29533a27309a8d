"""Clusterers pickled as the original programs pickle theirs, with classes of our own under their names."""

import pickle
import re
import sys
import types

import torch
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import Normalizer


class NumberNormalizingVectorizer(TfidfVectorizer):
    def build_tokenizer(self):
        pattern = re.compile(self.token_pattern)
        return lambda text: ["#NUMBER" if word[0].isdigit() else word for word in pattern.findall(text)]


class KMeans:
    def __init__(self, cluster_centers):
        self.n_clusters = len(cluster_centers)
        self.cluster_centers = cluster_centers
        self.device = torch.device("cuda")
        self.balanced = True


def under_their_names(monkeypatch):
    """Make the two classes importable where the original programs have them."""
    for cls, module in ((NumberNormalizingVectorizer, "__main__"), (KMeans, "kmeans_pytorch")):
        monkeypatch.setattr(cls, "__module__", module)
        if module not in sys.modules:
            monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
        monkeypatch.setattr(sys.modules[module], cls.__name__, cls, raising=False)


def fitted(texts, dim=4, **settings):
    """The pipeline of `train_clusterer`."""
    vectorizer = NumberNormalizingVectorizer(stop_words=["#NUMBER"], **settings)
    steps = [("tfidf", vectorizer), ("svd", TruncatedSVD(dim, random_state=0)), ("normalizer", Normalizer())]
    return Pipeline(steps).fit(texts)


def write(folder, monkeypatch, pipeline, centers, protocol=4, on_gpu=True):
    """The two files."""
    under_their_names(monkeypatch)
    if on_gpu:
        monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    for name, value in (("tfidf.pkl", pipeline), ("kmeans.pkl", KMeans(centers))):
        (folder / name).write_bytes(pickle.dumps(value, protocol))
    return folder
