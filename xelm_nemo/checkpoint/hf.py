"""Hugging Face folders in and out: XGLM and OPT folders to model folders, and model folders to them."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xelm_nemo.artifacts import Recipe
from xelm_nemo.checkpoint.architectures import ARCHITECTURES, CONFIG, shape_of
from xelm_nemo.checkpoint.card import model_card
from xelm_nemo.checkpoint.facts import ModelFacts
from xelm_nemo.checkpoint.filling import writing
from xelm_nemo.checkpoint.imports import import_weights
from xelm_nemo.checkpoint.model_folder import hf_batches
from xelm_nemo.checkpoint.safetensors_files import SAFETENSORS, write_safetensors
from xelm_nemo.checkpoint.weights import read_weights, with_prefix
from xelm_nemo.corpus.tokenizer import load_tokenizer
from xelm_nemo.errors import ArtifactError, first_line
from xelm_nemo.files import atomic_folder, read_json, write_atomic, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

GENERATION_CONFIG, CARD = "generation_config.json", "README.md"
_PREFIX = "model."  # of all weights but the head's
MAX_SHARD_BYTES = 5_000_000_000  # what the hub wants a file to stay below
_BESIDE_WEIGHTS = ["*.json", "*.model", "*.txt"]  # configuration and tokenizer


def import_hf(source: Path | str, output: Path, recipe: Recipe, *, tokenizer: str | None = None) -> None:
    """Write a Hugging Face XGLM or OPT as a model folder, tensor by tensor.

    bfloat16 weights stay bfloat16; float16 and mixed ones become float32, which holds them exactly.

    Args:
        source: a folder with config.json and weights, or a hub id.
        output: the model folder to write.
        recipe: what the model folder's manifest says that it was made from.
        tokenizer: folder or hub id of its tokenizer; None: it is in the source.

    Raises:
        ArtifactError: there is no such folder, nor a hub id that can be fetched.
        CheckpointError: names the tensors and files that are missing, unknown, damaged, of another
            shape, or hold a weight that is no finite number. No output is left behind.
    """
    folder = resolve_source(source)
    config = read_json(folder / CONFIG)
    shape_of(config, str(folder / CONFIG))  # before any weight is looked for
    weights = with_prefix(read_weights(folder), _PREFIX)
    import_weights(weights, config, output, recipe, source=str(source), tokenizer=tokenizer or str(source))


def export_hf(
    model_folder: Path,
    output: Path,
    *,
    tokenizer: Path | str | None,
    card: Mapping[str, Any] | str | None = None,
    dtype: str | None = None,
    facts: ModelFacts | None = None,
) -> None:
    """Write a finished model as a folder that `transformers` loads, at any layout it was saved in.

    Args:
        model_folder: the model, as a training run or `import_hf` wrote it.
        output: the folder to write; one that is there is replaced.
        tokenizer: its tokenizer's folder or hub id; None leaves it out.
        card: text of the model card, or facts for the table of a generated one (`card.model_card`).
        dtype: "fp32", "bf16" or "fp16"; None keeps the model's.
        facts: what is known of the model; None reads it from the folder.

    Raises:
        ArtifactError: the model or the tokenizer is missing, or the tokenizer has ids without weights.
        CheckpointError: Hugging Face's architecture cannot express the model, or `dtype` its weights. No
            output is left behind.
    """
    facts, batches = hf_batches(model_folder, dtype, facts=facts)
    config = ARCHITECTURES[facts.shape.architecture].write_config(facts)
    words = None if tokenizer is None else _fitting(tokenizer, model_folder, facts)
    with writing(output), atomic_folder(output) as part:
        write_json(part / CONFIG, config | (_ids(words, "bos", "eos") if words else {}))
        write_safetensors(part, batches, max_shard_bytes=MAX_SHARD_BYTES)
        if words:
            words.save_pretrained(part)
        write_json(part / GENERATION_CONFIG, _generation_config(words, config))
        write_atomic(part / CARD, card if isinstance(card, str) else model_card(facts, card or {}))


def _fitting(tokenizer: Path | str, model_folder: Path, facts: ModelFacts) -> "PreTrainedTokenizerBase":
    words = load_tokenizer(tokenizer)
    if len(words) > facts.vocab_size:
        raise ArtifactError(
            f"{tokenizer} has {len(words)} tokens and {model_folder} only {facts.vocab_size}; give the "
            "tokenizer that the model was trained with as tokenizer=DIR."
        )
    return words


def resolve_source(source: Path | str) -> Path:
    """The folder of a seed model, fetched from the hub when `source` is no folder here.

    Raises:
        ArtifactError: it is neither a folder nor a hub id that can be fetched.
    """
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(str(source), allow_patterns=[*_BESIDE_WEIGHTS, "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(
                snapshot_download(str(source), allow_patterns=[*_BESIDE_WEIGHTS, "pytorch_model*.bin"])
            )
    except (OSError, ValueError) as error:  # no network, no such repository, or no possible id
        raise ArtifactError(
            f"seed_model.path={str(source)!r} is no folder here, and the hub gives nothing under this id "
            f"({first_line(error)}); give a folder with {CONFIG} and {SAFETENSORS}."
        ) from error
    return folder


def _ids(tokenizer: "PreTrainedTokenizerBase", *kinds: str) -> dict[str, int]:
    """The special tokens' ids under the names of Hugging Face's configurations."""
    ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in kinds}
    return {name: number for name, number in ids.items() if number is not None}


def _generation_config(
    tokenizer: "PreTrainedTokenizerBase | None", config: Mapping[str, Any]
) -> dict[str, Any]:
    """Special tokens only: how to sample is the caller's choice. Every document starts with its end token."""
    if tokenizer is None:
        ids = {f"{kind}_token_id": config[f"{kind}_token_id"] for kind in ("bos", "eos", "pad")}
    else:
        ids = _ids(tokenizer, "bos", "eos", "pad")
    return {"decoder_start_token_id": ids["eos_token_id"], **ids}
