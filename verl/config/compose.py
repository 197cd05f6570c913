"""From command-line overrides to a typed configuration. User mistakes become one sentence each."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from verl.config.compat import translate_overrides
from verl.config.keys import ConfigKeys
from verl.config.root import PPOConfig, register_schemas
from verl.config.sft import SFTConfig, check_sft_config
from verl.utils.errors import UserError, root_cause
from verl.utils.importing import load_object
from verl.utils.secrets import masked

Root = TypeVar("Root")
GROUPS = ("env", "epo", "algo")  # folders of presets for a part of the configuration
SFT = "sft_"  # how the names of main_sft's presets begin
CONFIG_DIR = Path(__file__).resolve().parents[1] / "trainer" / "config"
# Import paths, because verl never imports the two packages itself.
ENV_SCHEMA = "agent_system.config:EnvConfig"
EPO_SCHEMA = "epo.config:EPOConfig"


def compose_config(
    overrides: list[str], config_name: str = "ppo_trainer"
) -> tuple[DictConfig, PPOConfig]:
    """Compose a preset with Hydra overrides; legacy keys are translated (`verl.config.compat`).

    Returns:
        The resolved configuration as OmegaConf (to print and to save) and as typed dataclasses,
        with `env` an `EnvConfig` and `epo` an `EPOConfig`.

    Raises:
        UserError: an unknown preset, key or group choice, a value of the wrong type, a missing
            mandatory value, or an override that cannot be parsed.
    """
    names = presets(CONFIG_DIR)
    return _compose(PPOConfig, ppo_keys(), translate_overrides(overrides), config_name, names)


def compose_sft_config(
    overrides: list[str], config_name: str = "sft_trainer"
) -> tuple[DictConfig, SFTConfig]:
    """The same for a preset `sft_*`. Raises UserError also on a value that no run could use."""
    composed, config = _compose(SFTConfig, sft_keys(), overrides, config_name, sft_presets())
    check_sft_config(config)
    return composed, config


def plain(composed: DictConfig) -> dict[str, Any]:
    """A composed configuration as dicts, lists and values, to be written to a file: secrets in its
    free-form parts are masked."""
    return {str(key): _plain(composed, str(key)) for key in composed}


def _plain(parent: DictConfig, key: str) -> Any:
    node = parent[key]
    if not isinstance(node, DictConfig):
        return OmegaConf.to_container(node) if OmegaConf.is_config(node) else node
    if OmegaConf.get_type(node) is dict:
        return masked(OmegaConf.to_container(node))
    return plain(node)


def ppo_keys() -> ConfigKeys:
    """The keys of `verl.trainer.main_ppo`."""
    return ConfigKeys(PPOConfig, load_schemas(), GROUPS)


def sft_keys() -> ConfigKeys:
    """The keys of `verl.trainer.main_sft`."""
    ConfigStore.instance().store(name="sft_schema", node=SFTConfig)
    return ConfigKeys(SFTConfig)


def _compose(
    root: type[Root], keys: ConfigKeys, overrides: list[str], config_name: str, names: list[str]
) -> tuple[DictConfig, Root]:
    if config_name not in names:
        raise UserError(f"unknown config name '{config_name}'; available: {', '.join(names)}")
    normalized = [keys.normalize(override) for override in overrides]
    try:
        with initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
            config = compose(config_name=config_name, overrides=normalized)
        OmegaConf.resolve(config)
        typed = OmegaConf.to_object(config)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_explain(error, keys)) from error
    except (ValueError, OverflowError, OSError, TypeError) as error:  # Hydra lets some through
        raise UserError(
            f"cannot read {' '.join(overrides)} ({root_cause(error)}); give each key a value of "
            "the type in docs/configuration.md"
        ) from error
    assert isinstance(typed, root)
    return config, typed


@cache
def load_schemas() -> dict[str, type]:
    """The dataclasses of the keys that belong to other packages, made known to Hydra."""
    schemas = {"env": load_object(ENV_SCHEMA), "epo": load_object(EPO_SCHEMA)}
    register_schemas(schemas["env"], schemas["epo"])
    return schemas


def presets(folder: Path) -> list[str]:
    """Names of the presets in a folder; those of main_sft have a schema of their own."""
    names = (path.stem for path in folder.glob("*.yaml"))
    return sorted(name for name in names if not name.startswith(SFT))


def sft_presets() -> list[str]:
    """Names of the presets of main_sft."""
    return sorted(path.stem for path in CONFIG_DIR.glob(f"{SFT}*.yaml"))


def _explain(error: Exception, keys: ConfigKeys) -> str:
    """Hydra's and OmegaConf's messages in one sentence that names the key and the remedy."""
    if isinstance(error, OverrideParseException):
        return f"cannot read the override '{error.override}'; write key=value, and quote lists"
    cause = error.__cause__ or error
    reason, *details = str(cause).splitlines()
    match = re.search(r"full_key: (\S+)", "\n".join(details))
    key = match[1] if match else ""
    if "missing mandatory value" in reason:
        return f"{key} is not set; add {key}=<value> to the command"
    if re.match(r"Key '.*' (is )?not in ", reason):
        return f"unknown key '{key}'{keys.suggest(key)}"
    if choice := re.search(r"Could not find '(\w+)/(.+)'", reason):
        names = ", ".join(presets(CONFIG_DIR / choice[1]))
        return f"unknown {choice[1]} preset '{choice[2]}'; available: {names}"
    return f"{key}: {reason}; give a value of the type in docs/configuration.md" if key else reason
