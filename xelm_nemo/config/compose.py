"""From `+experiment=name key=value ...` to a checked RunConfig. The only file that knows Hydra."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from xelm_nemo.config.check import check
from xelm_nemo.config.schema import RunConfig
from xelm_nemo.errors import ConfigError, first_line
from xelm_nemo.files import config_folder


def compose(overrides: Sequence[str], schema: type[Any] = RunConfig, name: str = "run") -> Any:
    """The configuration that `configs/<name>.yaml` and the overrides describe, as its dataclass.

    Raises:
        ConfigError: one line naming the key, the value and what is possible instead.
    """
    ConfigStore.instance().store(name=f"schema_{name}", node=_unlocked(OmegaConf.structured(schema)))
    with initialize_config_dir(version_base="1.3", config_dir=str(config_folder())):
        try:
            composed = hydra_compose(name, overrides=list(overrides))
            missing = OmegaConf.missing_keys(composed)
            if missing:
                raise ConfigError(f"{' and '.join(sorted(missing))} must be set, as key=VALUE.")
            config = OmegaConf.to_object(composed)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(_one_line(error, schema)) from error
    if isinstance(config, RunConfig):
        check(config)
    return config


def help_text(verb: str) -> str:
    """How to call a command, and the choices of every configuration group."""
    groups = sorted(path for path in config_folder().iterdir() if path.is_dir())
    lines = [f"usage: python -m xelm_nemo.{verb} +experiment=NAME group=CHOICE key=VALUE ...", ""]
    for group in groups:
        sign = "+" if group.name == "experiment" else ""
        choices = ", ".join(sorted(path.stem for path in group.glob("*.yaml")))
        lines.append(f"  {sign + group.name:12} {choices}")
    return "\n".join([*lines, "", "dry_run=true prints every setting, and touches nothing."])


def to_yaml(config: Any) -> str:
    """The resolved configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def from_yaml(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """A configuration that `to_yaml` wrote, with some `key=value` over it.

    Raises:
        ConfigError: the file is no configuration of this version.
    """
    try:
        over = OmegaConf.from_dotlist(list(overrides))
        loaded = OmegaConf.merge(_unlocked(OmegaConf.structured(RunConfig)), OmegaConf.load(path), over)
        config = OmegaConf.to_object(loaded)
    except (OSError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path} is no run configuration: {first_line(error)}") from error
    assert isinstance(config, RunConfig)
    return config


def _unlocked(node: DictConfig) -> DictConfig:
    """OmegaConf makes frozen dataclasses read-only, which would refuse the YAML files too."""
    OmegaConf.set_readonly(node, None)
    for key in node:
        child = node._get_node(key)
        if isinstance(child, DictConfig):
            _unlocked(child)
    return node


def _one_line(error: Exception, schema: type[Any]) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines[0].startswith("Could not override '"):
        return _unknown_key(lines[0].split("'")[1], schema)
    if "Available options in" in str(error):
        start = next(i for i, line in enumerate(lines) if line.startswith("Available options in"))
        options = [line for line in lines[start + 1 :] if ":" not in line]
        return f"{lines[0]}; use one of {', '.join(options)}."
    reason = "" if error.__cause__ is None else f": {first_line(error.__cause__)}"
    return lines[0] + reason


def _unknown_key(key: str, schema: type[Any]) -> str:
    known = sorted(_keys(OmegaConf.structured(schema)))
    guess = difflib.get_close_matches(key, known, n=1)
    near = [name for name in known if name.split(".")[0] == key.split(".")[0]]
    sections = sorted({name.split(".")[0] for name in known})
    hint = f"did you mean {guess[0]}?" if guess else f"use one of {', '.join(near or sections)}."
    return f"{key} is not a setting; {hint}"


def _keys(node: DictConfig, prefix: str = "") -> list[str]:
    keys = []
    for key in node:
        child = node._get_node(key)
        name = f"{prefix}{key!s}"
        keys += _keys(child, f"{name}.") if isinstance(child, DictConfig) else [name]
    return keys
