"""`check_env`: the parts of the contract one after another, all problems in one error."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from agent_system.config import ActionFormatConfig, PoolConfig, TaskSetConfig
from agent_system.environments.pool import EnvPool
from agent_system.environments.registry import BoundEnv, EnvPackage, get_env_package
from agent_system.environments.tasks import task_list_hash
from agent_system.environments.testing.play import EnvReport, Examiner, GoldPath
from agent_system.interfaces import TextEnv
from agent_system.types import Observation, ParsedAction, Task

__all__ = ["EnvContractError", "EnvReport", "check_env"]

logger = logging.getLogger(__name__)

RESPONSES = ("<think>x</think><action>look</action>", "look", "", "\x00" * 10_000)
SLOTS = 2  # equal tasks are compared between two processes


class EnvContractError(AssertionError):
    """An environment breaks the contract. `problems`: one sentence each."""

    def __init__(self, name: str, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        listed = "\n- ".join(problems)
        super().__init__(f"{name} breaks the contract in {len(problems)} ways:\n- {listed}")


def check_env(
    env: str | EnvPackage[Any],
    options: Mapping[str, Any] | None = None,
    *,
    task_lists: Sequence[str | TaskSetConfig] = ("train",),
    tasks_per_list: int = 2,
    steps: int = 12,
    waiting_steps: int = 50,
    idle_action: str = "",
    gold_path: GoldPath | None = None,
    is_refusal: Callable[[str], bool] | None = None,
    repeatable_steps: bool = True,
    pool: PoolConfig | None = None,
) -> EnvReport:
    """Run an environment through everything that the rollout loop relies on.

    That is: settings, prompts and task lists resolve; the environment closes, twice; it runs in
    spawned processes, and several episodes in one; a reset depends on the task alone; every answer
    has the types and the info that the loop reads, and can be sent; admissible actions are
    accepted; no action raises, be it nonsense, of 10,000 characters or full of control characters;
    nonsense and waiting never win; the gold path does; all of it within the time limits.

    Args:
        env: the package, or what `env.env_name` names.
        options: `env.options`.
        task_lists: lists to draw from; of each, `tasks_per_list` tasks from its beginning to its
            end are played.
        steps: random admissible actions in each episode.
        waiting_steps: how often `idle_action` is played; it must never win.
        gold_path: a function of the task and of the info of its reset that gives commands which
            solve it, or None where it knows none. By default `info["gold_path"]`, if present.
        is_refusal: tells from an observation that the environment did not take the action.
        repeatable_steps: equal actions lead to equal scores and to texts of equal words.
        pool: time limits; its number of slots is not used.

    Raises:
        EnvContractError: with all problems as sentences.
        ValueError: there is no such environment, its options are wrong or it cannot run here.
    """
    bound = get_env_package(env).bind(options or {})
    bound.check()
    problems = list(_prompt_problems(bound))
    tasks: list[Task] = []
    for task_list in task_lists:
        config = TaskSetConfig(task_list) if isinstance(task_list, str) else task_list
        listed, found = _listed(bound, config)
        problems += found
        tasks += _spread(listed, tasks_per_list)
    report = EnvReport()
    if tasks:
        problems += _process_problems(bound, tasks[0])
        limits = replace(pool or PoolConfig(), slots_per_worker=SLOTS)
        examiner = Examiner(
            report=report,
            steps=steps,
            waiting_steps=waiting_steps,
            idle_action=idle_action,
            gold_path=gold_path,
            is_refusal=is_refusal,
            repeatable_steps=repeatable_steps,
        )
        problems += _played(examiner, bound, limits, tasks)
    if problems:
        raise EnvContractError(bound.name, list(dict.fromkeys(problems)))
    logger.info("%s keeps the contract: %s", bound.name, report)
    return report


def _prompt_problems(env: BoundEnv[Any]) -> Iterator[str]:
    """Of the prompts, in both action formats."""
    seen = Observation("Something is seen.", ("look",))
    for kind in ("think_action", "plain"):
        prompts = env.prompts(ActionFormatConfig(kind))
        texts = {
            "first": prompts.first("The task.", seen),
            "next": prompts.next(seen),
            "turn": prompts.turn("The task.", [], seen, 0),
        }
        for name, text in texts.items():
            if not isinstance(text, str) or seen.text not in text:
                yield f"prompts.{name} ({kind}) has to be a text with the observation in it"
        if not isinstance(prompts.system("The task."), str | None):
            yield f"prompts.system ({kind}) has to be a text or None"
        for response in RESPONSES:
            if not isinstance(prompts.parse(response, seen), ParsedAction):
                yield f"prompts.parse ({kind}) has to answer with a ParsedAction"


def _listed(env: BoundEnv[Any], config: TaskSetConfig) -> tuple[list[Task], list[str]]:
    """The tasks of a list, and what is wrong with it."""
    tasks, problems = env.tasks(config), []
    if not tasks:
        problems.append(f"the task list '{config.name}' is empty")
    if len({task.key for task in tasks}) < len(tasks):
        problems.append(f"the task list '{config.name}' has a task twice")
    if task_list_hash(env.tasks(config)) != task_list_hash(tasks):
        problems.append(f"the task list '{config.name}' is another one at every call")
    for task in _spread(tasks, 1):
        if json.loads(json.dumps(dict(task.options))) != dict(task.options):
            problems.append(f"the options of {task.key} cannot be kept in a JSON file")
    return tasks, problems


def _spread(tasks: Sequence[Task], count: int) -> list[Task]:
    """`count` of the tasks from the list's beginning to its end."""
    if len(tasks) <= count:
        return list(tasks)
    return [tasks[round(i * (len(tasks) - 1) / max(count - 1, 1))] for i in range(count)]


def _process_problems(bound: BoundEnv[Any], task: Task) -> Iterator[str]:
    """Of the environment in this process: what the pool would hide."""
    env = bound.open()
    try:
        if not isinstance(env, TextEnv):
            yield f"{bound.make_env} has to build a TextEnv: reset, step and close"
            return
        coordinates = {"name": task.name, "options": dict(task.options), "seed": task.seed}
        answer = env.reset(seed=task.seed, options={"task": coordinates})
        try:
            pickle.dumps(answer)
        except Exception as error:  # pickle raises whatever the object raises
            yield f"the answer to a reset cannot be sent between processes: {error}"
        actions = answer[1].get("admissible_actions")
        if not isinstance(actions, list | tuple | None):
            yield f"info['admissible_actions'] is a {type(actions).__name__}; it has to be a list"
    finally:
        env.close()
        env.close()  # may be called again


def _played(
    examiner: Examiner, env: BoundEnv[Any], limits: PoolConfig, tasks: Sequence[Task]
) -> list[str]:
    """What goes wrong in processes of the pool."""
    pool = EnvPool(env, limits)
    try:
        return asyncio.run(examiner.examine(pool, tasks))
    finally:
        pool.close()
