"""XGLM and OPT as NeMo's models: configurations, presets of the published sizes, and model classes."""

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import yaml
from nemo.collections import llm

from xelm_nemo.errors import CheckpointError, ConfigError
from xelm_nemo.files import config_folder
from xelm_nemo.model.config import ModelConfig, ParallelConfig, layout_problems
from xelm_nemo.model.gpt import DecoderModel
from xelm_nemo.model.transformer import ACTIVATIONS, transformer_settings

_FREE = ("hidden_dropout", "attention_dropout", "init_method_std")  # what weights do not depend on
_BEYOND_MEGATRON = ("max_position_embeddings", "post_layernorm", "word_embed_proj_dim")


class Decoder(DecoderModel):
    """The model that NeMo trains: ours, and what its checkpoints hold is what ours hold."""

    def sharded_state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Without FP8 scales, which differ between layer implementations."""
        state = super().sharded_state_dict(*args, **kwargs)
        return {key: value for key, value in state.items() if not key.endswith("_extra_state")}


def forward_step(model: Any, batch: dict[str, Any]) -> Any:
    """One forward pass. NeMo's own insists on a mask where Transformer Engine is missing; ours is causal."""
    return model(
        batch["tokens"], None, labels=batch.get("labels")
    )  # positions that count on need not be said


def preset(name: str) -> Callable[[type], type]:
    """Give a configuration class the numbers of configs/model/<name>.yaml as its defaults."""
    path = config_folder() / "model" / f"{name}.yaml"
    return _with_defaults(ModelConfig(**yaml.safe_load(path.read_text())["model"]))


def _with_defaults(shape: ModelConfig) -> Callable[[type], type]:
    defaults = config_settings(shape)

    def decorate(cls: type) -> type:
        cls.__annotations__ = dict.fromkeys(defaults, Any) | inspect.get_annotations(cls)
        for key, value in defaults.items():
            setattr(cls, key, value)
        # NeMo records the arguments of a class unless a parent's are recorded, whose __init__ is another.
        cls.__wrapped_init__ = False  # type: ignore[attr-defined]
        return dataclass(cls)

    return decorate


def config_settings(shape: ModelConfig) -> dict[str, Any]:
    """The fields of a `DecoderConfig` that a shape decides."""
    return transformer_settings(shape) | {
        "seq_length": shape.max_position_embeddings,
        **{field: getattr(shape, field) for field in _BEYOND_MEGATRON},
    }


@dataclass
class DecoderConfig(llm.GPTConfig):
    """What the configurations of XGLM and OPT have beyond NeMo's, and the defaults of NeMo's that differ.

    `seq_length` is that of training, `vocab_size` the tokenizer's without padding (None: the tokenizer's).
    """

    architecture: ClassVar[str]

    max_position_embeddings: int = 2048
    post_layernorm: bool = False
    word_embed_proj_dim: int | None = None
    cross_entropy_loss_fusion: bool = False  # rounds otherwise than HF
    forward_step_fn: Callable[..., Any] = forward_step

    def shape(self) -> ModelConfig:
        """The shape that the fields describe.

        Raises:
            ConfigError: XGLM and OPT have no such activation function.
        """
        names = {function: name for name, function in ACTIVATIONS.items()}
        if self.activation_func not in names:
            raise ConfigError(f"activation_func={self.activation_func} is not one of {sorted(ACTIVATIONS)}.")
        fields = {field.name for field in dataclasses.fields(ModelConfig)} - {"architecture", "activation"}
        return ModelConfig(
            architecture=self.architecture,
            activation=names[self.activation_func],
            **{field: getattr(self, field) for field in fields},
        )

    def configure_model(
        self, tokenizer: Any, pre_process: Any = None, post_process: Any = None, vp_stage: Any = None
    ) -> Decoder:
        """This rank's part of the model; NeMo calls it within the parallel state of its strategy.

        Raises:
            ConfigError: names every setting that does not fit; there is no vocabulary size.
        """
        layout = ParallelConfig(
            tensor_model_parallel_size=self.tensor_model_parallel_size,
            pipeline_model_parallel_size=self.pipeline_model_parallel_size,
            sequence_parallel=self.sequence_parallel,
        )
        problems = layout_problems(self.shape(), layout)
        if self.virtual_pipeline_model_parallel_size is not None:
            problems.append("virtual_pipeline_model_parallel_size is set; unset it, stages are in one piece")
        if self.vocab_size is None and tokenizer is None:
            problems.append("vocab_size is not set, and the model has no tokenizer: give one of them")
        if problems:
            raise ConfigError("; ".join(problems) + ".")
        return Decoder(self, self.shape(), self.vocab_size or tokenizer.vocab_size)


@_with_defaults(ModelConfig())
class XGLMConfig(DecoderConfig):
    """An XGLM; the defaults are XGLM-1.7B's."""

    architecture: ClassVar[str] = "xglm"


@preset("xglm_564m")
class XGLMConfig564M(XGLMConfig):
    """facebook/xglm-564M."""


@preset("xglm_1_7b")
class XGLMConfig1_7B(XGLMConfig):
    """facebook/xglm-1.7B."""


@preset("xglm_2_9b")
class XGLMConfig2_9B(XGLMConfig):
    """facebook/xglm-2.9B."""


@preset("xglm_4_5b")
class XGLMConfig4_5B(XGLMConfig):
    """facebook/xglm-4.5B."""


@preset("xglm_7_5b")
class XGLMConfig7_5B(XGLMConfig):
    """facebook/xglm-7.5B."""


@preset("opt_1_3b")
class OPTConfig(DecoderConfig):
    """An OPT; the defaults are OPT-1.3B's."""

    architecture: ClassVar[str] = "opt"


@preset("opt_125m")
class OPTConfig125M(OPTConfig):
    """facebook/opt-125m."""


@preset("opt_350m")
class OPTConfig350M(OPTConfig):
    """facebook/opt-350m: norms behind, narrow embeddings."""


@preset("opt_1_3b")
class OPTConfig1_3B(OPTConfig):
    """facebook/opt-1.3b."""


@preset("opt_2_7b")
class OPTConfig2_7B(OPTConfig):
    """facebook/opt-2.7b."""


@preset("opt_6_7b")
class OPTConfig6_7B(OPTConfig):
    """facebook/opt-6.7b."""


@preset("opt_13b")
class OPTConfig13B(OPTConfig):
    """facebook/opt-13b."""


@preset("opt_30b")
class OPTConfig30B(OPTConfig):
    """facebook/opt-30b."""


@preset("opt_66b")
class OPTConfig66B(OPTConfig):
    """facebook/opt-66b."""


class _Model(llm.GPTModel):
    """NeMo's model, which takes from a checkpoint only what its configuration describes."""

    def importer(self, path: str) -> Any:
        """The importer of a checkpoint such as "hf://DIR".

        Raises:
            CheckpointError: names the settings in which the checkpoint differs from this model's.
        """
        importer = super().importer(path)
        found, wanted = importer.shape(), self.config.shape()
        differing = [
            f"{field.name}={getattr(found, field.name)!r} ({type(self.config).__name__} has "
            f"{getattr(wanted, field.name)!r})"
            for field in dataclasses.fields(ModelConfig)
            if field.name not in _FREE and getattr(found, field.name) != getattr(wanted, field.name)
        ]
        if differing:
            raise CheckpointError(
                f"{importer} has {', '.join(differing)}; give the model the configuration of its size."
            )
        return importer


class XGLMModel(_Model):
    """An XGLM in NeMo; give it an `XGLMConfig`."""


class OPTModel(_Model):
    """An OPT in NeMo; give it an `OPTConfig`."""


# model.architecture -> NeMo's configuration and model.
ARCHITECTURES: dict[str, tuple[Any, Any]] = {"xglm": (XGLMConfig, XGLMModel), "opt": (OPTConfig, OPTModel)}
