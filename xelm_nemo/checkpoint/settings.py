"""Maps between Hugging Face's config.json and our settings: a list of names for each architecture."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from xelm_nemo.checkpoint.facts import ModelFacts
from xelm_nemo.errors import CheckpointError
from xelm_nemo.model.config import ACTIVATIONS

LAYERNORM_EPSILON = 1e-5  # no setting in Hugging Face's XGLM and OPT
_TORCH_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True)
class SettingsMap:
    """Which keys of config.json are which fields of ModelConfig.

    Attributes:
        model_type: what Hugging Face calls the architecture.
        model_class: its class in transformers.
        sizes: key -> field, positive whole numbers that a configuration must have.
        rates: key -> field, numbers from 0 to below 1 that it may have.
        activation: the activation function of a configuration that names none.
        fixed: keys with the only value that our model computes with; without the key a configuration
            means the same.
        token_ids: the special tokens of the published checkpoints.
    """

    model_type: str
    model_class: str
    sizes: Mapping[str, str]
    rates: Mapping[str, str]
    activation: str
    fixed: Mapping[str, Any]
    token_ids: Mapping[str, int] = field(default_factory=dict)

    def problems(self, config: Mapping[str, Any]) -> list[str]:
        """What is missing from a config.json, or is nothing that our model computes with."""
        problems = []
        for key, value in self.fixed.items():
            if config.get(key, value) != value:
                problems.append(f"{key}={config[key]!r} is not supported, only {value!r}")
        activation = config.get("activation_function", self.activation)
        if activation not in ACTIVATIONS:
            problems.append(f"activation_function={activation!r} is not one of {sorted(ACTIVATIONS)}")
        problems += size_problems(config, ("vocab_size", *self.sizes))
        problems += rate_problems({key: config.get(key, 0.0) for key in self.rates}, self.rates)
        return problems or self._division_problems(config)

    def _division_problems(self, config: Mapping[str, Any]) -> list[str]:
        key_of = {field: key for key, field in self.sizes.items()}
        heads, width = key_of["num_attention_heads"], key_of["hidden_size"]
        if config[width] % config[heads] == 0:
            return []
        return [f"{heads}={config[heads]} does not divide {width}={config[width]}"]

    def read(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of ModelConfig that a config.json without problems sets."""
        fields: dict[str, Any] = {field: config[key] for key, field in self.sizes.items()}
        fields |= {field: float(config[key]) for key, field in self.rates.items() if key in config}
        fields["activation"] = config.get("activation_function", self.activation)
        return fields | {"architecture": self.model_type, "layernorm_epsilon": LAYERNORM_EPSILON}

    def write(self, facts: ModelFacts) -> dict[str, Any]:
        """The config.json of a model.

        Raises:
            CheckpointError: the model has a setting that Hugging Face cannot express.
        """
        shape = facts.shape
        if shape.layernorm_epsilon != LAYERNORM_EPSILON:
            raise CheckpointError(
                f"model.layernorm_epsilon={shape.layernorm_epsilon} cannot be exported: {self.model_class} "
                f"always computes with {LAYERNORM_EPSILON}."
            )
        return {
            "architectures": [self.model_class],
            "model_type": self.model_type,
            "vocab_size": facts.vocab_size,
            **{key: getattr(shape, field) for key, field in (*self.sizes.items(), *self.rates.items())},
            "activation_function": shape.activation,
            **self.fixed,
            **self.token_ids,
            "use_cache": True,
            "torch_dtype": _TORCH_DTYPES[facts.dtype],
        }


def is_size(value: Any) -> bool:
    """Whether a value from a config.json is a positive whole number."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def size_problems(values: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    """Which settings are no positive whole numbers."""
    return [
        f"{key}={values.get(key)!r} is not a positive whole number"
        for key in keys
        if not is_size(values.get(key))
    ]


def rate_problems(values: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    """Which settings are no numbers from 0 to below 1."""
    return [
        f"{key}={values[key]!r} is not a number from 0 to below 1"
        for key in keys
        if not isinstance(values[key], int | float) or not 0 <= values[key] < 1
    ]
