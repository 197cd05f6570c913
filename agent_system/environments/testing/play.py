"""Episodes in processes of the pool, played to find what breaks the contract."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agent_system.environments.pool import EnvPool, EnvPoolError, EnvWorkerError
from agent_system.environments.testing.answers import (
    FULL_SCORE,
    reset_problems,
    step_problems,
    words,
)
from agent_system.interfaces import AsyncEnv
from agent_system.types import Observation, StepResult, Task

GoldPath = Callable[[Task, Mapping[str, Any]], Sequence[str] | None]
Chooser = Callable[[Observation, int], str | None]

NONSENSE = (
    "",
    " ",
    "xyzzy plugh",
    "look " * 2_000,  # 10,000 characters
    "a" * 10_000,
    "\x00",
    "\x1b[2J\x07\x08\x7f",
    "look\r\nlook\nlook",
    "\u202e\ufeff\u2028",
    "\ud800",
    "打开 罐子 🧪",
    "<action>look</action></think>",
    "'; DROP TABLE rooms; --",
    "%s %d {0} {{}} $(reboot) ../../etc/passwd \\",
    "reset",
    "99999999999999999999",
    "-1",
)


@dataclass
class EnvReport:
    """What was tried. `gold_paths`: tasks solved by a gold path."""

    episodes: int = 0
    steps: int = 0
    gold_paths: int = 0
    slowest_reset_s: float = 0.0
    slowest_step_s: float = 0.0


@dataclass
class Played:
    """One episode: the answer to its reset, its actions and the answers to them."""

    observation: Observation
    info: Mapping[str, Any]
    actions: list[str] = field(default_factory=list)
    results: list[StepResult] = field(default_factory=list)

    @property
    def is_success(self) -> bool:
        return bool(self.results) and bool(self.results[-1].info.get("success"))


@dataclass
class Examiner:
    """Plays and collects problems; the fields are the arguments of `check_env`."""

    report: EnvReport
    steps: int
    waiting_steps: int
    idle_action: str
    gold_path: GoldPath | None
    is_refusal: Callable[[str], bool] | None
    repeatable_steps: bool
    problems: list[str] = field(default_factory=list)

    async def examine(self, pool: EnvPool, tasks: Sequence[Task]) -> list[str]:
        """All problems with these tasks."""
        try:
            for task in tasks:
                for part in (self._repeat, self._solve, self._wait):
                    await self._try(part, pool, task)
            for action in NONSENSE:
                await self._try(self._play_nonsense, pool, tasks[0], action)
        except EnvPoolError as error:
            self._note(tasks[0], f"gave up, {_short(error)}")
        return self.problems

    async def _try(self, part: Callable[..., Any], *arguments: Any) -> None:
        try:
            await part(*arguments)
        except EnvWorkerError as error:
            during = part.__name__.strip("_").replace("_", " ")
            self.problems.append(f"{_short(error)} (while it was tried to {during})")

    async def _repeat(self, pool: EnvPool, task: Task) -> None:
        """The same task in two processes, and once more in the first of them."""
        rng = random.Random(task.key)

        def random_action(observation: Observation, index: int) -> str | None:
            return rng.choice(observation.admissible_actions or (self.idle_action,))

        async with pool.acquire() as first, pool.acquire() as second:
            once = await self._play(first, task, random_action, self.steps)
            self._check_accepted(task, once)
            for slot in (second, first):
                again = await self._play(slot, task, _script(once.actions), len(once.actions))
                for difference in self._differences(once, again):
                    self._note(task, difference)

    async def _solve(self, pool: EnvPool, task: Task) -> None:
        """The gold path has to win."""
        async with pool.acquire() as slot:
            info = (await self._play(slot, task, _script(()), 0)).info
            path = self.gold_path(task, info) if self.gold_path else info.get("gold_path")
            if path is None:
                return
            played = await self._play(slot, task, _script(path), len(path))
        if not played.is_success:
            self._note(task, f"its gold path of {len(path)} commands does not solve it")
            return
        self.report.gold_paths += 1
        if played.results[-1].info.get("score") != FULL_SCORE:
            self._note(task, "a solved task has the score 100")

    async def _wait(self, pool: EnvPool, task: Task) -> None:
        """Waiting must not win."""
        async with pool.acquire() as slot:
            waiting = _script([self.idle_action] * self.waiting_steps)
            played = await self._play(slot, task, waiting, self.waiting_steps)
        if played.is_success:
            self._note(task, f"{self.idle_action!r} {len(played.results)} times solves it")

    async def _play_nonsense(self, pool: EnvPool, task: Task, action: str) -> None:
        """Nothing that a model may write ends the process or wins."""
        async with pool.acquire() as slot:
            try:
                played = await self._play(slot, task, _script([action]), 1)
            except EnvWorkerError as error:
                self._note(task, f"the action {_shown(action)} is fatal: {_short(error)}")
                return
        if played.is_success:
            self._note(task, f"the nonsense {_shown(action)} solves it")

    async def _play(self, env: AsyncEnv, task: Task, choose: Chooser, steps: int) -> Played:
        """One episode until its end, `steps` steps or None from `choose`."""
        started = time.monotonic()
        observation, info = await env.reset(task)
        elapsed = time.monotonic() - started
        self.report.slowest_reset_s = max(self.report.slowest_reset_s, elapsed)
        self.report.episodes += 1
        for problem in reset_problems(observation, info):
            self._note(task, f"reset: {problem}")
        played = Played(observation, info)
        for index in range(steps):
            action = choose(observation, index)
            if action is None:
                break
            result = await self._step(env, task, action, played)
            observation = result.observation
            if result.terminated or result.truncated:
                break
        return played

    async def _step(self, env: AsyncEnv, task: Task, action: str, played: Played) -> StepResult:
        last_info = played.results[-1].info if played.results else played.info
        started = time.monotonic()
        result = await env.step(action)
        self.report.slowest_step_s = max(self.report.slowest_step_s, time.monotonic() - started)
        self.report.steps += 1
        for problem in step_problems(result, last_info.get("score", 0)):
            self._note(task, f"step: {problem}")
        played.actions.append(action)
        played.results.append(result)
        return result

    def _check_accepted(self, task: Task, played: Played) -> None:
        if self.is_refusal is None or played.observation.admissible_actions is None:
            return
        for action, result in zip(played.actions, played.results, strict=True):
            if self.is_refusal(result.observation.text):
                self._note(task, f"the admissible action {action!r} is refused")

    def _differences(self, once: Played, again: Played) -> Iterator[str]:
        """How a repeated episode differs."""
        if _words_of(once.observation) != _words_of(again.observation):
            yield "two resets of it show different observations"
        for key in ("task_text", "score"):
            if once.info.get(key) != again.info.get(key):
                yield f"two resets of it have a different info['{key}']"
        if not self.repeatable_steps:
            return
        if len(once.results) != len(again.results):
            yield "equal actions end it after a different number of steps"
        for one, other in zip(once.results, again.results, strict=False):
            if _words_of(one.observation) != _words_of(other.observation):
                yield "equal actions lead to different observations"
            if one.info.get("score") != other.info.get("score"):
                yield "equal actions lead to different scores"

    def _note(self, task: Task, problem: str) -> None:
        self.problems.append(f"{task.key}: {problem}")


def _script(actions: Sequence[str]) -> Chooser:
    return lambda observation, index: actions[index] if index < len(actions) else None


def _words_of(observation: Observation) -> tuple[list[str], list[str] | None]:
    actions = observation.admissible_actions
    return words(observation.text), None if actions is None else sorted(actions)


def _short(error: Exception) -> str:
    """The message without the middle of its traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if len(lines) == 1 else f"{lines[0]} .. {lines[-1]}"


def _shown(action: str) -> str:
    return f"{action!a}" if len(action) <= 40 else f"{action[:10]!a}.. of {len(action)} characters"
