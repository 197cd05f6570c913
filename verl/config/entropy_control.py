"""The entropy control of a run: `epo.*`, or a user's own with options of its own."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from verl.algorithms.entropy_control import EntropyControl, Plugin
from verl.config.root import PPOConfig
from verl.utils.errors import UserError
from verl.utils.importing import resolve_choice

KEY = "algorithm.entropy_control"
# Import paths, because verl never imports the packages of others itself.
BUILT_IN = {"epo": "epo.plugin:CONTROL"}


@dataclass(frozen=True)
class _Chosen:
    control: EntropyControl
    options: Any  # an instance of `control.options`


def check_entropy_control(config: PPOConfig) -> None:
    """Raises UserError on a control that is unknown, misconfigured, or disagrees with a setting."""
    chosen = _chosen(config)
    if chosen is None:
        return
    if bonus := config.actor_rollout_ref.actor.entropy_coeff:
        switch = "epo.enable=true" if config.epo.enable else f"{KEY}.name={_name(config)}"
        raise UserError(
            f"{switch} replaces the entropy bonus actor_rollout_ref.actor.entropy_coeff={bonus}; "
            "set that to 0, the control has a weight of its own (EPO: epo.entropy_coeff)"
        )
    try:
        chosen.control.validate(chosen.options)
    except ValueError as error:
        raise UserError(str(error)) from error


def build_plugin(config: PPOConfig) -> Plugin | None:
    """The control's regulariser and hook; None in a run without one."""
    chosen = _chosen(config)
    return None if chosen is None else chosen.control.build(chosen.options)


def _name(config: PPOConfig) -> str | None:
    """`epo.enable` is EPO's own way to choose it."""
    return config.algorithm.entropy_control.name or ("epo" if config.epo.enable else None)


def _chosen(config: PPOConfig) -> _Chosen | None:
    name, values = _name(config), config.algorithm.entropy_control.options
    if config.epo.enable and name != "epo":
        raise UserError(
            f"{KEY}.name={name} and epo.enable=true are two controls of one entropy; set "
            f"epo.enable=false or leave {KEY}.name out"
        )
    if values and name in (None, "epo"):
        remedy = "EPO's settings are epo.*" if name else f"name the control in {KEY}.name"
        raise UserError(f"{KEY}.options={values} has no effect here; {remedy}")
    if name is None:
        return None
    control = resolve_choice(f"{KEY}.name", name, BUILT_IN)
    if not isinstance(control, EntropyControl) or not is_dataclass(control.options):
        raise UserError(
            f"{KEY}.name={name} is of type {type(control).__name__}; name an object with `options` "
            "(a dataclass), `validate` and `build`, as docs/extending.md shows"
        )
    options = config.epo if name == "epo" else parse_options(control.options, values)
    return _Chosen(control, options)


def parse_options(schema: type, values: Mapping[str, Any]) -> Any:
    """`values` as an instance of the dataclass `schema`.

    Raises:
        UserError: a key that it lacks, a value of another type, or a mandatory one that is missing.
    """
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), dict(values)))
    except OmegaConfBaseException as error:
        key, reason = f"{KEY}.options.{error.full_key}", str(error).splitlines()[0]
        if isinstance(error, ConfigKeyError):
            names = [field.name for field in fields(error.object_type or schema)]
            near = difflib.get_close_matches(str(error.key), names, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"available: {', '.join(names)}"
            raise UserError(f"unknown key '{key}'; {hint}") from error
        if isinstance(error, MissingMandatoryValue):
            raise UserError(f"{key} is not set; add {key}=<value> to the command") from error
        raise UserError(f"{key}: {reason}; give a value of the type in its dataclass") from error
