"""The model card of an exported model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xelm_nemo.checkpoint.architectures import ARCHITECTURES
from xelm_nemo.checkpoint.facts import ModelFacts

_USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
```"""


def model_card(facts: ModelFacts, extra: Mapping[str, Any]) -> str:
    """A README.md for the Hugging Face hub.

    Args:
        facts: what the model folder says of the model.
        extra: more rows for the table, for example {"clusters": [3], "languages": ["de", "nl"]}; the
            languages are told to the hub as well.
    """
    rows = {
        "name": facts.name,
        "parent": _place(facts.parent),
        "steps": f"{facts.iteration:,}" if facts.iteration else "",
        "training tokens": f"{facts.consumed_tokens:,}" if facts.iteration else "",
        "vocabulary": f"{facts.vocab_size:,} tokens",
        "context": f"{facts.shape.max_position_embeddings:,} tokens",
        "layers, hidden size, heads": _sizes(facts),
        "weights": facts.dtype,
        **{key: _text(value) for key, value in extra.items()},
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items() if value)
    architecture = facts.shape.architecture
    return (
        f"---\n{_header(facts, extra.get('languages'))}\n---\n\n"
        f"# {facts.name}\n\n"
        f"An {ARCHITECTURES[architecture].title} language model{_origin(facts, extra)}\n\n"
        f"| fact | value |\n| --- | --- |\n{table}\n\n"
        f"## Use\n\n{_USE}\n"
    )


def _origin(facts: ModelFacts, extra: Mapping[str, Any]) -> str:
    """Where the weights come from, as far as it is known."""
    if not facts.iteration:
        return ", converted with its weights as they were." if facts.parent else " with random weights."
    if "cluster" not in extra:
        return " trained with xelm_nemo."
    return (
        " trained with X-ELM: one of several experts branched from one seed model, each trained on its own "
        "cluster of a corpus, with no communication between them."
    )


def _header(facts: ModelFacts, languages: Any) -> str:
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        language=list(languages) if languages else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=[facts.shape.architecture, *(["x-elm"] if facts.iteration else [])],
    )
    return str(data.to_yaml())


def _sizes(facts: ModelFacts) -> str:
    return f"{facts.shape.num_layers}, {facts.shape.hidden_size}, {facts.shape.num_attention_heads}"


def _place(parent: str | None) -> str:
    """The last two steps of a path: whoever reads the card has another machine."""
    return "/".join(Path(parent).parts[-2:]) if parent else ""


def _text(value: Any) -> str:
    if isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
        return str(value)
    return ", ".join(str(item) for item in value)
