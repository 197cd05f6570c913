"""A fixed number of environment processes, shared by the episodes of a rollout.

    env = get_env_package("sciworld/SciWorldEnv").bind({"simplification": "easy"})
    pool = EnvPool(env, PoolConfig())
    async with pool.acquire() as slot:
        observation, info = await slot.reset(task)
        result = await slot.step("look around")
    pool.close()

Between two awaits the pool holds nothing that belongs to an event loop, so that each rollout may
run in an `asyncio.run` of its own. It is not thread-safe: one thread at a time.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from agent_system.config import PoolConfig
from agent_system.environments.registry import BoundEnv
from agent_system.environments.slot import EnvSlot, EnvWorkerError
from agent_system.types import Task

__all__ = ["EnvPool", "EnvPoolError", "EnvWorkerError", "PoolStats"]

logger = logging.getLogger(__name__)


class EnvPoolError(RuntimeError):
    """A slot failed again and again: the environment itself is at fault, and no episode can run."""


@dataclass(frozen=True)
class PoolStats:
    """`replacements`: environment processes replaced since the pool started; `loaded_ahead`:
    episodes since then whose slot had begun to load their task before."""

    slots: int
    busy: int
    replacements: int
    loaded_ahead: int


class EnvPool:
    """Environment slots that boot in parallel and are replaced when they fail.

    A failure raises `EnvWorkerError` in the episode that met it; its slot gets a new process. So
    does, between two episodes, a slot that is over `max_memory_mb`. One that is replaced more than
    `max_consecutive_replacements` times without an episode that went well breaks the pool:
    everything raises `EnvPoolError` from then on.

    Raises ValueError when the environment cannot run here.
    """

    def __init__(
        self, env: BoundEnv[Any], config: PoolConfig, variables: Mapping[str, str] | None = None
    ) -> None:
        """`variables`: the environment of the processes; None: this process's own."""
        env.check()
        self._config = config
        self._slots = [
            EnvSlot(index, env.make_env, env.options, config, variables)
            for index in range(config.slots_per_worker)
        ]
        self._idle = deque(self._slots)
        self._waiters: deque[asyncio.Future[EnvSlot]] = deque()
        self._replacements = 0
        self._loaded_ahead = 0
        self._broken: str | None = None
        for slot in self._slots:
            slot.launch()

    @asynccontextmanager
    async def acquire(self, task: Task | None = None) -> AsyncIterator[EnvSlot]:
        """Wait for a free, booted slot; it is given back at the end of the block.

        Of several free ones it is one that has loaded `task` ahead, else one that has loaded none.

        Raises EnvPoolError when the pool is broken or closed.
        """
        slot = await self._take(task.key if task else None)
        try:
            await self._boot(slot)
            yield slot
            if slot.failure is None:
                slot.check_memory()
            if slot.failure is None:
                slot.replacements_in_a_row = 0
        finally:
            self._give_back(slot)

    def load_ahead(self, tasks: Sequence[Task]) -> None:
        """Let free slots begin to load the tasks of later episodes: the first ones of `tasks`."""
        for slot, task in zip(self._idle, tasks, strict=False):
            slot.load_ahead(task)

    def stats(self) -> PoolStats:
        """Counts since the start of the pool."""
        return PoolStats(
            slots=len(self._slots),
            busy=len(self._slots) - len(self._idle),
            replacements=self._replacements,
            loaded_ahead=self._loaded_ahead,
        )

    def describe_waiting(self, longer_than_s: float) -> list[str]:
        """The slots that have not answered for so long, with what they were asked."""
        described = (slot.describe_waiting(longer_than_s) for slot in self._slots)
        return [text for text in described if text is not None]

    def close(self) -> None:
        """Kill every process. May be called again."""
        self._break("the environment pool is closed")
        for slot in self._slots:
            slot.kill()

    async def _take(self, task_key: str | None) -> EnvSlot:
        if self._broken is not None:
            raise EnvPoolError(self._broken)
        if self._idle:

            def preference(slot: EnvSlot) -> tuple[bool, bool, bool]:
                ahead = slot.task_ahead
                return ahead is not None and ahead == task_key, ahead is None, slot.has_booted

            slot = max(self._idle, key=preference)
            self._idle.remove(slot)
            self._loaded_ahead += preference(slot)[0]
            return slot
        waiter: asyncio.Future[EnvSlot] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._hand_on(waiter.result())  # it came just before the cancellation
            raise

    async def _boot(self, slot: EnvSlot) -> None:
        while True:
            try:
                await slot.ready()
                return
            except EnvWorkerError:
                self._replace(slot)

    def _give_back(self, slot: EnvSlot) -> None:
        if self._broken is not None:
            return
        if slot.failure is not None:
            self._replace(slot)
        self._hand_on(slot)

    def _hand_on(self, slot: EnvSlot) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(slot)
                return
        self._idle.append(slot)

    def _replace(self, slot: EnvSlot) -> None:
        reason = slot.failure
        self._replacements += 1
        slot.replacements_in_a_row += 1
        if slot.replacements_in_a_row > self._config.max_consecutive_replacements:
            self._break(
                f"environment slot {slot.index} had to be replaced {slot.replacements_in_a_row} "
                f"times without a good episode in between; the last reason: {reason}"
            )
            raise EnvPoolError(self._broken)
        logger.warning("replacing an environment process: %s", reason)
        slot.launch()

    def _break(self, reason: str) -> None:
        self._broken = reason
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(EnvPoolError(reason))
        self._waiters.clear()
