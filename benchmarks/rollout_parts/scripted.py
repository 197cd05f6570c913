"""An environment without a simulator, with the latencies of one, and the pool that plays it.

The pool of the trainer starts a process for each slot. Thousand of them do not fit a small machine
and are not what is measured here, so this one waits in the loop's own process instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from agent_system.config import ActionFormatConfig, TaskSetConfig
from agent_system.environments.pool import PoolStats
from agent_system.environments.prompting import PlainPrompts, TextPrompts, make_prompts
from agent_system.environments.registry import EnvPackage
from agent_system.environments.tasks import select_tasks
from agent_system.types import Observation, StepResult, Task

RULES = "You are in a house. Commands: look around, go PLACE, pick up OBJECT, wait."
TASK_TEXT = "Your task is to find a living thing and to move it to the red box in the kitchen."
OBSERVATION = (
    "This room is called the hallway. In it, you see: the agent, a substance called air, a "
    "picture of a mountain. You also see: a door to the green house (that is open), a door to the "
    "living room (that is open), a door to the art studio (that is open), a door to the kitchen."
)


@dataclass(frozen=True)
class ScriptedOptions:
    """Milliseconds of a reset and of a step, as ScienceWorld takes them."""

    reset_ms: float = 120.0
    step_ms: float = 12.0


class ScriptedEnv:
    """Says the same thing on every turn until the task's number of turns is reached."""

    def __init__(self, options: ScriptedOptions) -> None:
        self._options = options
        self._turns_left = 0

    async def reset(self, task: Task) -> tuple[Observation, dict[str, Any]]:
        await asyncio.sleep(self._options.reset_ms / 1000)
        self._turns_left = int(task.options["turns"])
        return Observation(OBSERVATION), {**_info(False), "task_text": TASK_TEXT}

    async def step(self, action: str) -> StepResult:
        await asyncio.sleep(self._options.step_ms / 1000)
        self._turns_left -= 1
        over = self._turns_left == 0
        return StepResult(Observation(OBSERVATION), float(over), over, False, _info(over))


def _info(success: bool) -> dict[str, Any]:
    return {"score": 100 * success, "success": success}


class ScriptedPool:
    """As much of `EnvPool` as a rollout worker uses."""

    def __init__(self, options: ScriptedOptions, slots: int) -> None:
        self._options = options
        self._slots = slots
        self._free = asyncio.Semaphore(slots)
        self._busy = 0

    @asynccontextmanager
    async def acquire(self, task: Task | None = None) -> AsyncIterator[ScriptedEnv]:
        async with self._free:
            self._busy += 1
            try:
                yield ScriptedEnv(self._options)
            finally:
                self._busy -= 1

    def stats(self) -> PoolStats:
        return PoolStats(slots=self._slots, busy=self._busy, replacements=0, loaded_ahead=0)

    def load_ahead(self, tasks: Sequence[Task]) -> None:
        """Nothing is loaded here."""

    def describe_waiting(self, longer_than_s: float) -> list[str]:
        return []

    def close(self) -> None:
        """No process to end."""


def prompts(
    options: ScriptedOptions, action_format: ActionFormatConfig
) -> TextPrompts | PlainPrompts:
    return make_prompts(RULES, action_format)


def task_sets(options: ScriptedOptions, config: TaskSetConfig) -> list[Task]:
    """`walk`: tasks of 3 to 8 turns."""
    walks = [Task("walk", {"turns": turns}) for turns in range(3, 9)]
    return select_tasks(walks, config)


def _check() -> None:
    """It needs nothing."""


PACKAGE = EnvPackage(
    name="rollout_parts.scripted:PACKAGE",
    make_env="",  # never started in a process of its own
    options=ScriptedOptions,
    prompts=prompts,
    task_sets=task_sets,
    check=_check,
)
