"""`speed`: one environment of this project beside the package's own loop.

Both play the same commands of the same tasks, each in a process of its own, in turn, call by call,
so that whatever else the machine does slows both alike, and only when both are warm. The start is
that of a process, from nothing until it can be reset, once. The other times are taken within the
processes and are medians; steps/s are those of all steps together, without resets.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rollout_parts.report import Cell, show

from agent_system.config import PoolConfig
from agent_system.environments.slot import EnvSlot
from agent_system.types import Task
from environment_parts.subjects import Subject, open_subject
from environment_parts.timed import Inner

PACKAGE, HERE = "package", "here"
TIMED_ENV = "environment_parts.timed:TimedEnv"
HEADER = ("environment", "what", "package", "here", "times as fast")


@dataclass
class Times:
    """Seconds: of the `start`, of resets to a `new` task and to the same one `again`, of steps."""

    start: float = 0.0
    new: list[float] = field(default_factory=list)
    again: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)

    def milliseconds(self) -> dict[str, float]:
        """What each of them takes; `start` happens once."""
        return {
            "start of a process, ms": 1e3 * self.start,
            "reset to a new task, ms": 1e3 * statistics.median(self.new),
            "reset to the same task, ms": 1e3 * statistics.median(self.again),
            "step, ms": 1e3 * statistics.median(self.steps),
        }

    @property
    def steps_per_s(self) -> float:
        return len(self.steps) / sum(self.steps)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tasks", type=int, default=24, help="at most so many")
    parser.add_argument("--steps", type=int, default=25, help="of a task, at most")
    parser.add_argument("--warm_up", type=float, default=5.0, help="seconds of play, not measured")


def run(names: Sequence[str], notes: Sequence[str], options: argparse.Namespace) -> None:
    rows: list[list[Cell]] = []
    for name in names:
        with open_subject(name) as subject:
            rows += table_rows(name, asyncio.run(measure(subject, options)))
    show(HEADER, rows, notes)


async def measure(subject: Subject, options: argparse.Namespace) -> dict[str, Times]:
    """The times of both sides, or of the one that there is."""
    make_envs = {PACKAGE: subject.baseline, HERE: subject.env.make_env}
    slots = {side: _slot(subject, path) for side, path in make_envs.items() if path}
    times = {side: Times() for side in slots}
    rng = random.Random(options.seed)
    try:
        for side, slot in slots.items():
            await _start(slot, times[side])  # one after the other, not to slow each other down
        await _warm_up(slots, subject, options, rng)
        for task in subject.tasks[: options.tasks]:
            await _play(slots, times, subject, task, options.steps, rng)
    finally:
        for slot in slots.values():
            slot.kill()
    return times


async def _start(slot: EnvSlot, times: Times) -> None:
    started = time.perf_counter()
    slot.launch()
    await slot.ready()
    times.start = time.perf_counter() - started


async def _warm_up(
    slots: Mapping[str, EnvSlot], subject: Subject, options: argparse.Namespace, rng: random.Random
) -> None:
    """Java is slow at first: play for a while and forget the times."""
    ignored = {side: Times() for side in slots}
    tasks = itertools.cycle(subject.tasks[::-1])  # not to end with the first one to be measured
    end = time.perf_counter() + options.warm_up
    while time.perf_counter() < end:
        await _play(slots, ignored, subject, next(tasks), options.steps, rng)


async def _play(
    slots: Mapping[str, EnvSlot],
    times: Mapping[str, Times],
    subject: Subject,
    task: Task,
    steps: int,
    rng: random.Random,
) -> None:
    for side, slot in slots.items():
        _, info = await slot.reset(task)
        times[side].new.append(info["seconds"])
        observation, info = await slot.reset(task)  # at last the one of this project
        times[side].again.append(info["seconds"])
    for index in range(steps):
        command = subject.command(task, observation, index, rng)
        if command is None:
            return
        for side, slot in slots.items():
            result = await slot.step(command)
            times[side].steps.append(result.info["seconds"])
        if result.terminated or result.truncated:
            return
        observation = result.observation


def table_rows(name: str, times: dict[str, Times]) -> list[list[Cell]]:
    """A row for each kind of call, and one for the steps a second."""
    here, package = times[HERE], times.get(PACKAGE)
    theirs = package.milliseconds() if package else {}
    rows: list[list[Cell]] = [
        [name, what, *_compared(theirs.get(what), ms)] for what, ms in here.milliseconds().items()
    ]
    rate = package.steps_per_s if package else None
    _, _, slowdown = _compared(rate, here.steps_per_s)
    ratio = 1 / slowdown if isinstance(slowdown, float) else slowdown
    rows.append([name, "steps/s", "-" if rate is None else rate, here.steps_per_s, ratio])
    return rows


def _compared(theirs: float | None, ours: float) -> tuple[Cell, Cell, Cell]:
    return ("-", ours, "-") if theirs is None else (theirs, ours, theirs / ours)


def _slot(subject: Subject, make_env: str) -> EnvSlot:
    return EnvSlot(0, TIMED_ENV, Inner(make_env, subject.env.options), PoolConfig())
