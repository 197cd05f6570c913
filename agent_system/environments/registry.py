"""Environments by name: what the rest of the system needs to know about each of them.

A name is one of the built-in ones or an import path of your own `EnvPackage`, "my_module:PACKAGE".
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from agent_system.config import ActionFormatConfig, TaskSetConfig
from agent_system.interfaces import PromptBuilder
from agent_system.types import Task

# Import paths, so that naming an environment does not import the others.
_BUILT_IN: Mapping[str, str] = MappingProxyType(
    {
        "sciworld/SciWorldEnv": "agent_system.environments.env_package.sciworld:PACKAGE",
        "alfworld/AlfredTWEnv": "agent_system.environments.env_package.alfworld:PACKAGE",
        "gymnasium/TextEnv": "agent_system.environments.env_package.gymnasium_text:PACKAGE",
        "textworld_express/TextWorldExpressEnv": (
            "agent_system.environments.env_package.textworld_express:PACKAGE"
        ),
    }
)


@dataclass(frozen=True)
class EnvPackage:
    """One environment.

    `make_env`: import path "module:callable" of a function of the options that builds the
    `TextEnv`; it is imported in the environment's own process only.
    `options`: dataclass type of the environment's settings (`env.options`).
    `prompts`: builds the `PromptBuilder` from the options and the action format.
    `task_sets`: resolves a task list.
    `check`: raises ValueError with the remedy when the environment cannot run here.
    """

    name: str
    make_env: str
    options: type
    prompts: Callable[[Any, ActionFormatConfig], PromptBuilder]
    task_sets: Callable[[TaskSetConfig], list[Task]]
    check: Callable[[], None]

    def parse_options(self, values: Mapping[str, Any]) -> Any:
        """`values` as an instance of `options`. Raises ValueError on a bad key or value."""
        return parse_options(self.options, values, where=f"env.options of {self.name}")

    def configured(self, options: Any) -> EnvPackage:
        """The package for one set of options. One whose task lists depend on them overrides it."""
        return self


def get_env_package(env_name: str | EnvPackage) -> EnvPackage:
    """The package called `env_name`, or the one given. Raises ValueError when there is none."""
    if isinstance(env_name, EnvPackage):
        return env_name
    if env_name not in _BUILT_IN and ":" not in env_name:
        raise ValueError(f"unknown environment '{env_name}'; available: {', '.join(_BUILT_IN)}")
    package = import_object(_BUILT_IN.get(env_name, env_name))
    if not isinstance(package, EnvPackage):
        raise ValueError(
            f"'{env_name}' is of type {type(package).__name__}; name an EnvPackage, which "
            "describes an environment, such as my_module:PACKAGE"
        )
    return package


def import_object(path: str) -> Any:
    """The object at "module:attribute". Raises ValueError when it cannot be imported."""
    module_name, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"cannot import '{path}': {error}") from error


def parse_options(cls: type, values: Mapping[str, Any], *, where: str) -> Any:
    """Build the dataclass `cls` from a mapping, checking keys, types and literal choices."""
    hints = get_type_hints(cls)
    names = [field.name for field in fields(cls)]
    for key, value in values.items():
        if key not in names:
            raise ValueError(f"unknown key '{key}' in {where}; available: {', '.join(names)}")
        _check_value(value, hints[key], f"{key} in {where}")
    return cls(**values)


def _check_value(value: Any, hint: Any, what: str) -> None:
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            choices = ", ".join(map(str, get_args(hint)))
            raise ValueError(f"{what} is {value!r}; available: {choices}")
        return
    # bool is an int in Python, but `jvm_heap_mb: true` is a mistake
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ValueError(f"{what} is {value!r}; it has to be of type {hint.__name__}")
