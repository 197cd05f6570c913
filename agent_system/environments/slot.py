"""One environment process as the rollout loop sees it: awaitable `reset` and `step`."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import psutil

from agent_system.config import PoolConfig
from agent_system.environments.received import received_number, received_observation
from agent_system.types import Observation, StepResult, Task

logger = logging.getLogger(__name__)

MIN_START_WAIT_S = 1.0
PROCESS_ENDED = "its process ended"


class EnvWorkerError(RuntimeError):
    """An environment process died, hung or failed: its episode is lost, no other one."""


class EnvSlot:
    """A place for an environment process; implements `AsyncEnv`.

    `launch` only starts the process: it boots by itself while the caller does other things, and
    `ready` waits for it. Nothing here is tied to an event loop between two calls.
    """

    def __init__(
        self,
        index: int,
        make_env: str,
        options: Any,
        config: PoolConfig,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.index = index
        self.failure: str | None = None
        self.replacements_in_a_row = 0
        self._make_env = make_env
        self._options = options
        self._config = config
        self._variables = variables
        self._process: subprocess.Popen | None = None
        self._connection: Connection
        self._launched_at = 0.0
        self._is_ready = False
        self._last_request = 0
        self._task: Task | None = None
        self._ahead: str | None = None  # key of the task that a `reset` has been begun to
        self._waits_for: tuple[str, float] | None = None

    # Life of the process

    def launch(self) -> None:
        """Start a fresh process in this slot, ending the previous one."""
        self.kill()
        self.failure, self._task, self._ahead = None, None, None
        self._is_ready, self._last_request = False, 0
        variables = os.environ if self._variables is None else self._variables
        ours, theirs = socket.socketpair()
        with theirs, self._open_log() as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "agent_system.environments.worker", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                env={**variables, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
                start_new_session=True,  # its own group: it is killed with all it started
            )
        self._launched_at = time.monotonic()
        self._connection = Connection(ours.detach())
        self._connection.send((self._make_env, self._options))

    def kill(self) -> int | None:
        """End the process and everything it started; its exit code. Harmless when there is none."""
        if self._process is None:
            return None
        # Before wait(): while the process is not reaped, its group id cannot be taken by others.
        os.killpg(self._process.pid, signal.SIGKILL)
        exit_code = self._process.wait()
        self._connection.close()
        self._process = None
        return exit_code

    @property
    def pid(self) -> int | None:
        """Process id, which is also the id of its process group."""
        return self._process.pid if self._process else None

    @property
    def has_booted(self) -> bool:
        """True when `ready` will not have to wait."""
        return self._is_ready or self._connection.poll()

    @property
    def task_ahead(self) -> str | None:
        """Key of the task that `load_ahead` has begun to load for the next episode."""
        return self._ahead

    def load_ahead(self, task: Task) -> None:
        """Begin the `reset` to `task` between two episodes; that call only waits for its end then.

        A slot that boots or has failed is left alone.
        """
        if self._is_ready:
            with suppress(EnvWorkerError):  # the episode meets it
                self._begin_reset(task)

    def check_memory(self) -> None:
        """Take a process that is over its memory cap for a failed one. Between two episodes."""
        cap = self._config.max_memory_mb
        if cap is None or self._process is None:
            return
        used = group_memory_mb(self._process.pid)
        if used > cap:
            self.failure = (
                f"environment slot {self.index} holds {used:.0f} MiB{self._task_key('after')}, "
                f"more than env.pool.max_memory_mb={cap}"
            )

    # What the loop calls

    async def ready(self) -> None:
        """Wait until the environment has started. Raises EnvWorkerError."""
        if self._is_ready:
            return
        limit = self._launched_at + self._config.start_timeout_s - time.monotonic()
        await self._answer("start", max(limit, MIN_START_WAIT_S))
        self._is_ready = True

    async def reset(self, task: Task) -> tuple[Observation, dict[str, Any]]:
        """Start an episode. Raises EnvWorkerError."""
        if self._ahead != task.key:
            self._begin_reset(task)
        self._ahead = None
        text, info = await self._answer("reset", self._config.reset_timeout_s)
        return self._received("reset", text, info)

    async def step(self, action: str) -> StepResult:
        """Play one action. Raises EnvWorkerError."""
        self._send("step", {"action": action})
        text, reward, terminated, truncated, info = await self._answer(
            "step", self._config.step_timeout_s
        )
        observation, info = self._received("step", text, info, reward)
        return StepResult(observation, reward, terminated, truncated, info)

    def describe_waiting(self, longer_than_s: float) -> str | None:
        """What this slot has been waiting for, if it has been for longer than that."""
        if self._waits_for is None:
            return None
        method, since = self._waits_for
        seconds = time.monotonic() - since
        if seconds < longer_than_s:
            return None
        return f"slot {self.index}: {method} for {seconds:.0f} s{self._task_key('in')}"

    # The wire

    def _begin_reset(self, task: Task) -> None:
        self._task, self._ahead = task, None
        coordinates = {"name": task.name, "options": dict(task.options), "seed": task.seed}
        self._send("reset", {"seed": task.seed, "options": {"task": coordinates}})
        self._ahead = task.key

    def _send(self, method: str, kwargs: dict[str, Any]) -> None:
        if self.failure is not None:
            raise EnvWorkerError(self.failure)
        self._last_request += 1
        try:
            self._connection.send((self._last_request, method, kwargs))
        except OSError:
            self._fail(method, PROCESS_ENDED)

    async def _answer(self, method: str, limit_s: float) -> Any:
        self._waits_for = (method, time.monotonic())
        try:
            async with asyncio.timeout(limit_s):
                kind, value = await self._receive(self._last_request)
        except TimeoutError:
            self._fail(method, f"no answer within {limit_s:.0f} s")
        except (EOFError, OSError):
            self._fail(method, PROCESS_ENDED)
        finally:
            self._waits_for = None
        if kind == "error":
            summary, trace = value
            if self._config.log_dir is None:  # else it is there
                logger.warning("in environment slot %d: %s", self.index, trace)
            self._fail(method, summary)
        return value

    async def _receive(self, request_id: int) -> tuple[str, Any]:
        # Answers to earlier requests belong to an episode that was cancelled while it waited.
        while True:
            await _readable(self._connection.fileno())
            reply_id, kind, value = self._connection.recv()
            if reply_id == request_id:
                return kind, value

    def _received(
        self, method: str, text: Any, info: dict[str, Any], reward: float = 0.0
    ) -> tuple[Observation, dict[str, Any]]:
        try:
            received_number(reward, "the reward")
            return received_observation(text, info, self._config.max_text_chars)
        except ValueError as error:
            self._fail(method, str(error))

    def _fail(self, method: str, reason: str) -> NoReturn:
        exit_code = self.kill()
        if reason == PROCESS_ENDED:
            reason = f"{PROCESS_ENDED} with exit code {exit_code}"
        log = f"; its output is in {self._log_path()}" if self._config.log_dir else ""
        self.failure = (
            f"environment slot {self.index} failed at {method}{self._task_key('of')}: {reason}{log}"
        )
        raise EnvWorkerError(self.failure)

    def _task_key(self, preposition: str) -> str:
        return f" {preposition} {self._task.key}" if self._task else ""

    def _log_path(self) -> Path:
        return Path(self._config.log_dir or os.devnull) / f"env_slot_{self.index:03d}.log"

    def _open_log(self):
        if self._config.log_dir is None:
            return open(os.devnull, "ab")
        self._log_path().parent.mkdir(parents=True, exist_ok=True)
        return self._log_path().open("ab")


def group_memory_mb(group: int) -> float:
    """Resident memory of a process group, MiB: of what `EnvSlot.kill` would end.

    Not of a child in a group of its own, such as a Java process that several slots share. Pages
    that members share count for each.
    """
    return sum(_resident_bytes(pid) for pid in psutil.pids() if _group_of(pid) == group) / 2**20


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:  # it has just ended
        return None


def _resident_bytes(pid: int) -> int:
    try:
        return psutil.Process(pid).memory_info().rss
    except psutil.NoSuchProcess:
        return 0


async def _readable(fd: int) -> None:
    """Return when `fd` has something to read (or has hung up), without blocking the loop."""
    loop = asyncio.get_running_loop()
    is_readable = loop.create_future()

    def wake() -> None:
        if not is_readable.done():
            is_readable.set_result(None)

    loop.add_reader(fd, wake)
    try:
        await is_readable
    finally:
        loop.remove_reader(fd)
