"""Cross-lingual expert language models on Megatron: cluster, branch, train, mix, export."""

__version__ = "0.1.0"
