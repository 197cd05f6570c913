"""Task lists in files: named, versioned, and with a hash that tells when somebody changed one.

    python -m agent_system.environments.task_files sciworld/SciWorldEnv L1_test --max_tasks 128 \
        --name my_test --version 1 --output my_test.json

writes a list of an environment to a file, and `env.val.mine.name=my_test.json` plays it. Lists that
come along are in the folder `task_lists` beside this file; their file name is enough.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agent_system.config import TaskSetConfig
from agent_system.types import Task

HASH_LENGTH = 16
SHIPPED_LISTS = Path(__file__).with_name("task_lists")
FORMAT = (
    'a JSON object with "name", "version", "environment", "hash" and "tasks", or only a list of '
    'tasks; a task is {"name": .., "options": {..}, "seed": ..}'
)


def task_list_hash(tasks: Sequence[Task]) -> str:
    """16 hexadecimal digits that identify the list: equal results were measured on equal tasks."""
    text = "\n".join(task.key for task in tasks)
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_LENGTH]


@dataclass(frozen=True)
class TaskFile:
    """A stored list. `version` is raised whenever the tasks change; `environment` is its name."""

    name: str
    version: int
    environment: str
    tasks: tuple[Task, ...]

    def write(self, path: Path) -> None:
        """As JSON, one task a line."""
        header = {"name": self.name, "version": self.version, "environment": self.environment}
        header["hash"] = task_list_hash(self.tasks)
        fields = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in header.items()]
        rows = ",\n".join(f"    {json.dumps(asdict(task))}" for task in self.tasks)
        text = ",\n".join([*fields, f'  "tasks": [\n{rows}\n  ]'])
        path.write_text(f"{{\n{text}\n}}\n", encoding="utf-8")

    @classmethod
    def read(cls, path: str | Path) -> TaskFile:
        """The list in `path`; a file that is only a list of tasks is named after it, version 0.

        Raises ValueError when there is no such file or list, or its tasks do not have its hash.
        """
        path = _found(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(content, list):
                content = {"name": path.stem, "version": 0, "environment": "", "tasks": content}
            tasks = tuple(Task(**row) for row in content["tasks"])
            stored = cls(content["name"], content["version"], content["environment"], tasks)
            claimed = content["hash"] if stored.version else task_list_hash(tasks)
        except (OSError, TypeError, KeyError, ValueError, AttributeError) as error:
            raise ValueError(
                f"cannot read the task list '{path}': {error}; it has to be {FORMAT}"
            ) from error
        if claimed != (actual := task_list_hash(tasks)):
            raise ValueError(
                f"the task list '{path}' was changed: its tasks have the hash {actual}, not the "
                f"{claimed} it names; restore it, or write a new version with `python -m "
                "agent_system.environments.task_files`"
            )
        return stored


def load_task_file(path: str | Path, environment: str | None = None) -> list[Task]:
    """The tasks of `TaskFile.read`.

    Raises ValueError as it does, and when the list is one of another environment.
    """
    stored = TaskFile.read(path)
    if environment is not None and stored.environment not in ("", environment):
        raise ValueError(
            f"the task list '{path}' is one of {stored.environment}, not of {environment}; choose "
            "another list or another env.env_name"
        )
    return list(stored.tasks)


def describe_tasks(config: TaskSetConfig, tasks: Sequence[Task]) -> dict[str, Any]:
    """What a result has to say about the tasks it was measured on; `tasks` are those of `config`.

    A list that is code has the version None: its hash says all.
    """
    name, version = config.name, None
    if name.endswith(".json"):
        stored = TaskFile.read(name)
        name, version = stored.name, stored.version
    return {"name": name, "version": version, "hash": task_list_hash(tasks), "n": len(tasks)}


def count_overlap(
    train: Sequence[Task],
    other: Sequence[Task],
    content: Callable[[Task], str | None] = lambda task: None,
) -> int:
    """How many tasks of `other` are in `train` too, by their options or by their content.

    A task's options are its identity, its seed only where it has no options: a seed that makes the
    game is among the options, and training draws the other kind anew for every episode. Two seeds
    may make one game: that is what `content` tells (see `EnvPackage`).
    """

    def keys(task: Task) -> set[tuple[str, str]]:
        game = content(task)
        found = {("", _identity(task))}
        return found if game is None else found | {(task.name, game)}

    known = {key for task in train for key in keys(task)}
    return sum(not known.isdisjoint(keys(task)) for task in other)


def _identity(task: Task) -> str:
    return Task(task.name, task.options, seed=0 if task.options else task.seed).key


def _found(path: str | Path) -> Path:
    shipped = SHIPPED_LISTS / path
    if Path(path).exists() or Path(path).name != str(path) or not shipped.exists():
        return Path(path)
    return shipped


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a list of an environment to a file; SystemExit(2), with the reason, when it cannot."""
    # here, because environments load their lists with this module
    from agent_system.environments.registry import get_env_package

    parser = argparse.ArgumentParser(description="Write a task list to a file.")
    parser.add_argument("environment", help="such as sciworld/SciWorldEnv")
    parser.add_argument("list", help="a list of it, or a *.json file of one")
    parser.add_argument("--tasks", help="only these task types, comma-separated")
    parser.add_argument("--max_tasks", type=int, help="a seeded subset of so many tasks")
    parser.add_argument("--seed", type=int, default=0, help="of the subset")
    parser.add_argument("--options", type=_options, default={}, help="of it: a JSON object")
    parser.add_argument("--name", required=True)
    parser.add_argument("--version", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args(arguments)
    types = given.tasks.split(",") if given.tasks else None
    config = TaskSetConfig(given.list, types, given.max_tasks, given.seed)
    try:
        tasks = get_env_package(given.environment).bind(given.options).tasks(config)
    except ValueError as error:
        parser.error(str(error))
    TaskFile(given.name, given.version, given.environment, tuple(tasks)).write(given.output)


def _options(text: str) -> dict[str, Any]:
    if isinstance(options := json.loads(text), dict):
        return options
    raise ValueError(text)


if __name__ == "__main__":
    main()
