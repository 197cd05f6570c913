"""The configuration that a run wrote to its folder, read back with overrides."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from verl.config.compose import compose_config, ppo_keys
from verl.config.keys import ConfigKeys
from verl.config.root import PPOConfig
from verl.utils.errors import UserError

logger = logging.getLogger(__name__)


def load_saved(path: Path, overrides: list[str]) -> tuple[DictConfig, PPOConfig]:
    """`path` is a run's `config.yaml`; `overrides` are `key=value` and win.

    Raises:
        UserError: the file is missing, or holds or is given a key or value that does not fit.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; keep a checkpoint in the folder of the run it is from")
    saved = OmegaConf.load(path)
    _leave_out_what_is_gone(saved, path, ppo_keys())
    config, _ = compose_config(["actor_rollout_ref.model.path=saved"])  # a stand-in, replaced below
    # Free-form keys: the saved ones replace the preset's, and overrides may add to them.
    for key in ("env.val", "env.options", "algorithm.entropy_control.options"):
        OmegaConf.update(config, key, {}, merge=False)
        OmegaConf.set_struct(OmegaConf.select(config, key), False)
    try:
        config = OmegaConf.merge(config, saved, OmegaConf.from_dotlist(overrides))
        typed = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise UserError(
            f"{str(error).splitlines()[0]} ({path} with {' '.join(overrides) or 'no overrides'}); "
            "the keys are listed in docs/configuration.md"
        ) from error
    assert isinstance(typed, PPOConfig) and isinstance(config, DictConfig)
    return config, typed


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
