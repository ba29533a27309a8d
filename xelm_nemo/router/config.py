"""Settings of the router."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RouterConfig:
    """How the text so far becomes weights over the experts."""

    temperature: float = 0.1  # T of softmax(-distance / T), as in X-ELM
    rule: str = "upstream"  # distance = (d^2)^2; "paper": d^2, d the Euclidean distance
    # Share of a document's tokens for which weights are renewed; the rest keeps the last ones. X-ELM: 1.
    cluster_ratio: float = 1.0
