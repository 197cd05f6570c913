"""Episodes with a known script, as they run in the environment processes of a pool."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from agent_system.environments.pool import EnvPool
from agent_system.environments.testing.play import Played
from agent_system.types import Task

ScriptOf = Callable[[Task, Mapping[str, Any]], Sequence[str]]


@pytest.fixture(scope="session")
def play_scripts() -> Callable[[EnvPool, Sequence[Task], ScriptOf], list[Played]]:
    """Plays each task's script until its end or the episode's, as many at once as there are slots.

    A script is made of the task and the info of its reset.
    """

    async def episode(pool: EnvPool, task: Task, script_of: ScriptOf) -> Played:
        async with pool.acquire(task) as env:
            played = Played(*await env.reset(task))
            for command in script_of(task, played.info):
                played.actions.append(command)
                played.results.append(await env.step(command))
                if played.results[-1].terminated:
                    break
            return played

    async def episodes(pool: EnvPool, tasks: Sequence[Task], script_of: ScriptOf) -> list[Played]:
        return await asyncio.gather(*(episode(pool, task, script_of) for task in tasks))

    return lambda pool, tasks, script_of: asyncio.run(episodes(pool, tasks, script_of))
