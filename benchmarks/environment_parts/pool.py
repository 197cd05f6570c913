"""`pool`: steps a second through the whole pool, by its number of slots.

Every slot plays one episode after another, resets included, of at most the preset's turns. The
window of the measurement opens when each has finished one (of a random length, so that they do not
reset all at once).
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace

from rollout_parts.report import Cell, show

from agent_system.config import PoolConfig
from agent_system.environments.pool import EnvPool
from agent_system.types import Task
from environment_parts.subjects import Subject, open_subject, play

HEADER = ("environment", "slots", "all started, s", "steps/s", "resets/s", "times one slot")


class Window:
    """Counts steps and resets for `seconds`, from when `players` players are warm."""

    def __init__(self, players: int, seconds: float) -> None:
        self._cold = players
        self._seconds = seconds
        self._end = float("inf")
        self.steps = 0
        self.resets = 0

    def warm(self) -> None:
        """One more player has finished its first episode."""
        self._cold -= 1
        if self._cold == 0:
            self._end = time.perf_counter() + self._seconds

    @property
    def is_open(self) -> bool:
        return self._cold == 0 and not self.is_over

    @property
    def is_over(self) -> bool:
        return time.perf_counter() >= self._end


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--seconds", type=float, default=15.0, help="of each measurement")


def run(names: Sequence[str], notes: Sequence[str], options: argparse.Namespace) -> None:
    rows: list[list[Cell]] = []
    for name in names:
        with open_subject(name) as subject:
            rows += table_rows(subject, options)
    show(HEADER, rows, notes)


def table_rows(subject: Subject, options: argparse.Namespace) -> list[list[Cell]]:
    """A row for each number of slots; the ratio is to the first."""
    rows: list[list[Cell]] = []
    for slots in options.slots:
        start_s, steps, resets = measure(subject, slots, options.seconds, options.seed)
        first = rows[0][3] if rows else steps
        rows.append([subject.name, slots, start_s, steps, resets, steps / first])
    return rows


def measure(subject: Subject, slots: int, seconds: float, seed: int) -> tuple[float, float, float]:
    """Seconds until all slots have started; then steps and resets a second of all together."""
    started = time.perf_counter()
    pool = EnvPool(subject.env, PoolConfig(slots_per_worker=slots))
    window, tasks = Window(slots, seconds), itertools.cycle(subject.tasks)
    try:
        start_s = asyncio.run(_play_all(pool, subject, slots, window, tasks, seed)) - started
    finally:
        pool.close()
    return start_s, window.steps / seconds, window.resets / seconds


async def _play_all(
    pool: EnvPool, subject: Subject, slots: int, window: Window, tasks: Iterator[Task], seed: int
) -> float:
    boot = asyncio.Barrier(slots)
    players = [
        _play_on(pool, subject, window, tasks, random.Random(f"{seed}/{index}"), boot)
        for index in range(slots)
    ]
    return max(await asyncio.gather(*players))


async def _play_on(
    pool: EnvPool,
    subject: Subject,
    window: Window,
    tasks: Iterator[Task],
    rng: random.Random,
    boot: asyncio.Barrier,
) -> float:
    """Play until the window is over; when the slot had started."""
    async with pool.acquire() as slot:
        started = time.perf_counter()
        await boot.wait()
        first = replace(subject, max_steps=rng.randint(1, subject.max_steps))
        async for _ in play(slot, first, next(tasks), rng):
            pass
        window.warm()
        while not window.is_over:
            async with aclosing(play(slot, subject, next(tasks), rng)) as commands:
                window.resets += window.is_open
                async for _ in commands:
                    if window.is_over:
                        break
                    window.steps += window.is_open
    return started
