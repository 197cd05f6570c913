"""Environments of a pool stepped together, from synchronous code."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

from agent_system.environments.pool import EnvPool
from agent_system.environments.slot import EnvSlot, EnvWorkerError
from agent_system.environments.tasks import TaskSampler
from agent_system.types import Observation, StepResult, Task


class PoolVectorEnv:
    """All B slots of a pool as one vectorised environment. Implements `VectorEnv`.

    Row i belongs to group i // group_size; the members of a group play the same task. A row whose
    environment fails is done, without success, with the reason in `info["env_error"]`.
    """

    def __init__(self, pool: EnvPool, sampler: TaskSampler, group_size: int) -> None:
        """Raises ValueError when groups of `group_size` do not fill the pool."""
        self._rows = pool.stats().slots
        if self._rows % group_size:
            raise ValueError(
                f"{self._rows} environment slots cannot hold groups of {group_size}; "
                "set slots_per_worker to a multiple of the group size"
            )
        self._pool = pool
        self._sampler = sampler
        self._group_size = group_size
        self._runner = asyncio.Runner()
        self._held = AsyncExitStack()
        self._slots: list[EnvSlot] = []
        self._answers: list[StepResult] = []

    def reset(self, tasks: Sequence[Task] | None) -> tuple[list[str], list[dict[str, Any]]]:
        """Start the given B tasks, or the sampler's next ones, each for a whole group.

        Raises ValueError when their number is not B.
        """
        if tasks is None:
            drawn = self._sampler.next(self._rows // self._group_size)
            tasks = [task for task in drawn for _ in range(self._group_size)]
        if len(tasks) != self._rows:
            raise ValueError(f"{len(tasks)} tasks for {self._rows} environments; pass one for each")
        self._answers = self._runner.run(self._reset_all(tasks))
        return self._texts(), self._infos()

    def step(
        self, commands: Sequence[str]
    ) -> tuple[list[str], list[float], list[bool], list[dict[str, Any]]]:
        """Play a command in every environment that is not done.

        Raises ValueError when their number is not B.
        """
        if len(commands) != self._rows:
            raise ValueError(f"{len(commands)} commands for {self._rows} environments")
        self._answers = self._runner.run(self._step_all(commands))
        rewards = [answer.reward for answer in self._answers]
        return self._texts(), rewards, [_is_over(a) for a in self._answers], self._infos()

    def close(self) -> None:
        """Give the slots back and end the pool."""
        self._runner.run(self._held.aclose())
        self._runner.close()
        self._pool.close()

    async def _reset_all(self, tasks: Sequence[Task]) -> list[StepResult]:
        await self._held.aclose()  # slots that failed in the last episode are replaced here
        self._slots = [
            await self._held.enter_async_context(self._pool.acquire()) for _ in range(self._rows)
        ]
        pairs = zip(self._slots, tasks, strict=True)
        return await asyncio.gather(*(_reset(slot, task) for slot, task in pairs))

    async def _step_all(self, commands: Sequence[str]) -> list[StepResult]:
        rows = zip(self._slots, commands, self._answers, strict=True)
        return await asyncio.gather(*(_step(*row) for row in rows))

    def _texts(self) -> list[str]:
        return [answer.observation.text for answer in self._answers]

    def _infos(self) -> list[dict[str, Any]]:
        """With `admissible_actions`, None where the environment does not list them."""
        return [
            {**answer.info, "admissible_actions": answer.observation.admissible_actions}
            for answer in self._answers
        ]


async def _reset(slot: EnvSlot, task: Task) -> StepResult:
    try:
        observation, info = await slot.reset(task)
    except EnvWorkerError as error:
        return _lost({"task_text": ""}, error)
    return StepResult(observation, 0.0, False, False, info)


async def _step(slot: EnvSlot, command: str, last: StepResult) -> StepResult:
    if _is_over(last):
        return replace(last, reward=0.0)
    try:
        return await slot.step(command)
    except EnvWorkerError as error:
        return _lost(last.info, error)


def _is_over(answer: StepResult) -> bool:
    return answer.terminated or answer.truncated


def _lost(info: Any, error: EnvWorkerError) -> StepResult:
    lost = {**info, "score": 0, "success": False, "env_error": str(error)}
    return StepResult(Observation(""), 0.0, False, True, lost)
