"""Environments by name: what the rest of the system needs to know about each of them.

A name is one of the built-in ones or an import path of your own `EnvPackage`, "my_module:PACKAGE".
Bound to its settings, a package gives the prompts, the tasks and the environments of a run:

    env = get_env_package("sciworld/SciWorldEnv").bind({"simplification": "easy"})
    tasks = env.tasks(TaskSetConfig("L1_test"))
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, fields
from types import MappingProxyType
from typing import (
    Any,
    ClassVar,
    Generic,
    Literal,
    Protocol,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

from agent_system.config import ActionFormatConfig, EnvConfig, TaskSetConfig
from agent_system.interfaces import PromptBuilder, TextEnv
from agent_system.types import Task


class Settings(Protocol):
    """Any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


Options = TypeVar("Options", bound=Settings)

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
class EnvPackage(Generic[Options]):
    """One environment, as its author describes it; `bind` gives what may be used.

    `make_env`: import path "module:callable" of a function of the options that builds the
    `TextEnv`; it is imported in the environment's own process only.
    `options`: dataclass type of the environment's settings (`env.options`).
    `prompts`: builds the `PromptBuilder` from the options and the action format.
    `task_sets`: resolves a task list, from the options and what is asked of it.
    `check`: raises ValueError with the remedy when the environment cannot run here.
    `content`: what is played in a task, as a key: equal for tasks that are one game under two
    seeds. By it validation tasks are found in training; None where the options say all.
    """

    name: str
    make_env: str
    options: type[Options]
    prompts: Callable[[Options, ActionFormatConfig], PromptBuilder]
    task_sets: Callable[[Options, TaskSetConfig], list[Task]]
    check: Callable[[], None]
    content: Callable[[Options, Task], str | None] | None = None

    def bind(self, values: Mapping[str, Any]) -> BoundEnv[Options]:
        """The environment with the settings `values`. Raises ValueError on a bad key or value."""
        where = f"env.options of {self.name}"
        return BoundEnv(self, parse_options(self.options, values, where=where))


@dataclass(frozen=True)
class BoundEnv(Generic[Options]):
    """An environment with its settings: the one way to its prompts, tasks and instances."""

    package: EnvPackage[Options]
    options: Options

    @property
    def name(self) -> str:
        return self.package.name

    @property
    def make_env(self) -> str:
        """Import path of what builds the environment from `options`, in a process of its own."""
        return self.package.make_env

    def check(self) -> None:
        """Raises ValueError with the remedy when the environment cannot run here."""
        self.package.check()

    def prompts(self, action_format: ActionFormatConfig) -> PromptBuilder:
        """How its observations are put in words, and actions read."""
        return self.package.prompts(self.options, action_format)

    def tasks(self, task_set: TaskSetConfig) -> list[Task]:
        """Raises ValueError on an unknown list or task type."""
        return self.package.task_sets(self.options, task_set)

    def content(self, task: Task) -> str | None:
        """What is played in it, as a key; None where its options are all there is to know."""
        return self.package.content(self.options, task) if self.package.content else None

    def open(self) -> TextEnv:
        """An instance in this process. A pool has each in a process of its own."""
        return import_object(self.make_env)(self.options)


def bind_env(config: EnvConfig) -> BoundEnv[Any]:
    """The environment that `config` names, with its options. Raises ValueError on either."""
    return get_env_package(config.env_name).bind(config.options)


def get_env_package(env_name: str | EnvPackage[Any]) -> EnvPackage[Any]:
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
        if not attribute:
            raise ImportError("it names no object")  # before the module's code is run
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"cannot import '{path}': {error}") from error


def parse_options(cls: type[Options], values: Mapping[str, Any], *, where: str) -> Options:
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
