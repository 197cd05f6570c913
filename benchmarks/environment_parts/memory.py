"""`memory`: what a slot takes, with all the processes that it has started.

RSS counts a page in every process that has it, PSS shares it out among them (Linux,
/proc/<pid>/smaps_rollup): the sum of PSS is what the machine is short of. All slots are measured at
once, when each has played some episodes; a Java process that several share counts once.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import psutil
from rollout_parts.report import Cell, show

from agent_system.config import PoolConfig
from agent_system.environments.pool import EnvPool
from agent_system.environments.slot import EnvSlot
from environment_parts.subjects import Subject, open_subject, play

MB = 1_000_000
HEADER = ("environment", "of", "processes a slot", "RSS a slot, MB", "PSS a slot, MB")


@dataclass(frozen=True)
class Memory:
    """Bytes of all slots together. `paths`: the commands played, by task key."""

    processes: int
    rss: int
    pss: int
    paths: dict[str, list[str]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--episodes", type=int, default=4, help="of each slot")


def run(names: Sequence[str], notes: Sequence[str], options: argparse.Namespace) -> None:
    rows: list[list[Cell]] = []
    for name in names:
        with open_subject(name) as subject:
            rows += table_rows(subject, options)
    show(
        HEADER, rows, [f"{options.slots} slots at once, {options.episodes} episodes each.", *notes]
    )


def table_rows(subject: Subject, options: argparse.Namespace) -> list[list[Cell]]:
    """The environment of this project and, with the same commands, the package's own."""
    here = asyncio.run(measure(subject, options))
    rows = [_row(subject.name, "here", here, options.slots)]
    if subject.baseline:
        package = replace(subject.env.package, make_env=subject.baseline)
        theirs = replace(subject, env=replace(subject.env, package=package), paths=here.paths)
        measured = asyncio.run(measure(theirs, options))
        rows.insert(0, _row(subject.name, "package", measured, options.slots))
    return rows


async def measure(subject: Subject, options: argparse.Namespace) -> Memory:
    """Play in all slots of a pool, and add up their processes."""
    pool = EnvPool(subject.env, PoolConfig(slots_per_worker=options.slots))
    rng, paths = random.Random(options.seed), {}
    try:
        async with AsyncExitStack() as held:
            slots = [await held.enter_async_context(pool.acquire()) for _ in range(options.slots)]
            plays = [
                _play_some(slot, subject, index, options.episodes, rng, paths)
                for index, slot in enumerate(slots)
            ]
            await asyncio.gather(*plays)
            processes, rss, pss = usage(slot.pid for slot in slots)
    finally:
        pool.close()
    return Memory(processes, rss, pss, paths)


async def _play_some(
    slot: EnvSlot,
    subject: Subject,
    index: int,
    episodes: int,
    rng: random.Random,
    paths: dict[str, list[str]],
) -> None:
    tasks = itertools.islice(itertools.cycle(subject.tasks), index, index + episodes)
    for task in tasks:
        paths[task.key] = [command async for command in play(slot, subject, task, rng)]


def usage(pids: Iterable[int]) -> tuple[int, int, int]:
    """Number, RSS and PSS, in bytes, of these processes and all that come from them."""
    roots = [psutil.Process(pid) for pid in pids]
    processes = {p for root in roots for p in (root, *root.children(recursive=True))}
    infos = [process.memory_full_info() for process in processes]
    return len(processes), sum(info.rss for info in infos), sum(info.pss for info in infos)


def _row(name: str, side: str, memory: Memory, slots: int) -> list[Cell]:
    per_slot = [memory.processes / slots, memory.rss / slots / MB, memory.pss / slots / MB]
    return [name, side, *per_slot]
