"""An exported model on the devices that there are, with its tokenizer."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoConfig

from xelm_nemo import device as devices
from xelm_nemo.corpus.tokenizer import load_tokenizer
from xelm_nemo.errors import ArtifactError
from xelm_nemo.files import read_json
from xelm_nemo.generation.model import XelmConfig, XelmForCausalLM
from xelm_nemo.generation.routing import FixedRouting
from xelm_nemo.generation.siblings import open_expert

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Opened:
    """A model that is ready to run.

    Attributes:
        model: the mixture.
        tokenizer: of its experts.
        device: where tokens go in, and where the next ones are chosen.
    """

    model: XelmForCausalLM
    tokenizer: "PreTrainedTokenizerBase"
    device: torch.device

    @property
    def context(self) -> int:
        """The most tokens that the model reads."""
        return int(self.model.config.max_position_embeddings)

    @property
    def pad_id(self) -> int:
        """What fills rows up; attention leaves it out."""
        pad, eos = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        return int(eos if pad is None else pad)


def open_model(
    folder: Path,
    *,
    experts_per_token: int | None = None,
    temperature: float | None = None,
    dtype: str = "auto",
    device: str | None = None,
) -> Opened:
    """Open an exported set, or one exported model as a mixture of itself alone.

    Args:
        folder: the set's or the model's.
        experts_per_token: how many experts the router keeps; None leaves it to the set.
        temperature: of the router; None leaves it to the set.
        dtype: of the weights, such as "float32"; "auto" takes the files'.
        device: where to run, such as "cuda:1"; None takes all GPUs. Where there is no GPU it is the CPU.

    Raises:
        ArtifactError: there is no model, or the set is not whole.
        ConfigError: experts and clusters do not match.
    """
    if not (folder / "config.json").is_file():
        raise ArtifactError(
            f"{folder} holds no exported model (config.json); run `python -m xelm_nemo.export` and give a "
            "folder that it wrote, such as runs/<name>/export/ensemble."
        )
    read_json(folder / "config.json")  # whose fault transformers would not say in a line
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if isinstance(config, XelmConfig):
        if experts_per_token is not None:
            config.experts_per_token = experts_per_token
        if temperature is not None:
            config.router["temperature"] = temperature
        model = XelmForCausalLM.from_pretrained(folder, config=config, dtype=dtype)
    else:
        model = _alone(folder, config, dtype)
    places = [torch.device("cuda", n) for n in range(devices.count())]
    if places and device is not None:
        places = [torch.device(device)]
    places = places or [torch.device("cpu")]  # lm_eval asks for "cuda:0" wherever it runs
    model.place(places)
    return Opened(model, load_tokenizer(folder), places[0])


def _alone(folder: Path, config: "AutoConfig", dtype: str) -> XelmForCausalLM:
    """One model as a mixture of which it is the only part."""
    expert = open_expert(folder, dtype=dtype)
    shared = {name: getattr(config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    sizes = (config.vocab_size, config.max_position_embeddings)
    return XelmForCausalLM(
        XelmConfig([str(folder)], *sizes, **shared), [expert], FixedRouting([1.0], top_k=None)
    )
