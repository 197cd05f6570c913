"""The configuration that a run wrote to its folder: read back, and compared with another."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from verl.config.compose import compose_config, compose_sft_config, ppo_keys, sft_keys
from verl.config.doors import check_doors
from verl.config.fields import leaves, settings
from verl.config.keys import ConfigKeys
from verl.config.root import PPOConfig
from verl.config.sft import SFTConfig
from verl.utils.errors import UserError
from verl.utils.secrets import MASK, masked

logger = logging.getLogger(__name__)

NOT_SET = "(not set)"
KWARGS = "chat_template_kwargs"
RUNTIME_ENV = "ray_kwargs.ray_init.runtime_env"


def load_saved(path: Path, overrides: list[str]) -> tuple[DictConfig, PPOConfig]:
    """`path` is a run's `config.yaml`; `overrides` are `key=value` and win.

    Raises:
        UserError: the file is missing, holds or is given a key or value that does not fit, has
            strange code run that the overrides do not ask for, or needs a secret from them.
    """
    merged, typed = _load_ppo(path, overrides)
    given = OmegaConf.to_container(OmegaConf.from_dotlist(overrides))
    check_doors(typed, {name.removeprefix(".") for name, _ in leaves("", given)}, path)
    _check_secrets(typed, path)
    return merged, typed


def _check_secrets(config: PPOConfig, path: Path) -> None:
    missing = [
        name
        for key, value, _ in settings(config)
        for name, leaf in leaves(key, value)
        if leaf == MASK
    ]
    if missing:
        raise UserError(
            f"{path} keeps no secrets; add {' '.join(f'{name}=<value>' for name in missing)}"
        )


def load_saved_ppo(path: Path) -> PPOConfig:
    """A run's `config.yaml` as it is: to compare with another, not to run."""
    return _load_ppo(path, [])[1]


def load_saved_sft(path: Path) -> SFTConfig:
    """The same of a run of main_sft."""
    config, _ = compose_sft_config(["model.path=saved", "data.train_files=[saved]"])
    _open(config, f"model.{KWARGS}", RUNTIME_ENV)
    _, typed = _merged(config, path, [], sft_keys())
    assert isinstance(typed, SFTConfig)
    return typed


def _load_ppo(path: Path, overrides: list[str]) -> tuple[DictConfig, PPOConfig]:
    config, _ = compose_config(["actor_rollout_ref.model.path=saved"])  # a stand-in, replaced below
    # Free-form keys: the saved ones replace the preset's, and overrides may add to them.
    _open(config, "env.val", "env.options", "algorithm.entropy_control.options", RUNTIME_ENV)
    _open(config, f"actor_rollout_ref.model.{KWARGS}", f"critic.model.{KWARGS}")
    merged, typed = _merged(config, path, overrides, ppo_keys())
    assert isinstance(typed, PPOConfig)
    return merged, typed


def _open(config: DictConfig, *keys: str) -> None:
    for key in keys:
        OmegaConf.update(config, key, {}, merge=False)
        OmegaConf.set_struct(OmegaConf.select(config, key), False)


def _merged(
    config: DictConfig, path: Path, overrides: list[str], keys: ConfigKeys
) -> tuple[DictConfig, Any]:
    if not path.is_file():
        raise UserError(f"{path} is missing; keep a checkpoint in the folder of the run it is from")
    saved = OmegaConf.load(path)
    _leave_out_what_is_gone(saved, path, keys)
    try:
        merged = OmegaConf.merge(config, saved, OmegaConf.from_dotlist(overrides))
        typed = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise UserError(
            f"{str(error).splitlines()[0]} ({path} with {' '.join(overrides) or 'no overrides'}); "
            "the keys are listed in docs/configuration.md"
        ) from error
    assert isinstance(merged, DictConfig)
    return merged, typed


class Change(NamedTuple):
    """A key that has another value. `harmless`: it changes nothing of what is learned."""

    key: str
    before: Any
    after: Any
    harmless: bool

    def __str__(self) -> str:
        return f"{self.key}={self.before} -> {self.after}"


def changes_between(before: Any, after: Any) -> list[Change]:
    """What two typed configurations differ in; entries of free-form keys one by one."""
    old, new = _entries(before), _entries(after)
    unset = (NOT_SET, False)
    found = []
    for key in old | new:
        (was, harmless), (is_now, harmless_now) = old.get(key, unset), new.get(key, unset)
        if was != is_now:
            found.append(Change(key, was, is_now, harmless or harmless_now))
    return found


def _entries(config: Any) -> dict[str, tuple[Any, bool]]:
    return {
        name: (leaf, facts.harmless)
        for key, value, facts in settings(config)
        for name, leaf in leaves(key, masked(value))  # as in the file, which keeps no secrets
    }


def _leave_out_what_is_gone(saved: Any, path: Path, keys: ConfigKeys, prefix: str = "") -> None:
    """A run of an earlier version stays usable: its keys that there are no longer are named."""
    if not isinstance(saved, DictConfig):
        return
    for name in list(saved):
        key = f"{prefix}{name}"
        try:
            keys.normalize(f"{key}=null")
        except UserError as error:
            logger.warning("%s: %s; this version goes without it", path, error)
            del saved[name]
        else:
            _leave_out_what_is_gone(saved[name], path, keys, f"{key}.")
