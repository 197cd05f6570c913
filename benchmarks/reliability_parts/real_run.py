"""A training run as its user starts it, again and again; what strikes it; how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

REPO = Path(__file__).parents[2]
POLL_S = 0.1
ENDS_WITHIN_S = 300.0  # also beside other work; a run that takes longer hangs
GONE_WITHIN_S = 90.0
STEPS_SECONDS = 600.0


def processes(*words: str) -> Callable[[TrainingRun], list[psutil.Process]]:
    """Those below the driver that have one of `words` in their command line."""

    def found(run: TrainingRun) -> list[psutil.Process]:
        return [p for p in run.descendants() if any(word in _command_line(p) for word in words)]

    return found


RANKS = processes("Colocated_actor")
ROLLOUT_WORKERS = processes("ray::RolloutWorker")
ENVIRONMENTS = processes("environments.worker")
RAYLET = processes("raylet/raylet")
GCS = processes("gcs/gcs_server")


@dataclass(frozen=True)
class Event:
    """What happens to a run: `strike` it. `codes`: with which it may end; 0: it goes on."""

    name: str
    strike: Callable[[TrainingRun], object]
    codes: tuple[int, ...]
    speaks: bool = True  # its end is a sentence


def _to_first(
    find: Callable[[TrainingRun], list[psutil.Process]], number: int
) -> Callable[[TrainingRun], object]:
    return lambda run: find(run)[0].send_signal(number)


# 3: a rank that dies once more than trainer.max_restarts
EVENTS = (
    Event("driver SIGKILL", lambda run: run.process.kill(), (-9,), speaks=False),
    Event("training rank SIGKILL", _to_first(RANKS, signal.SIGKILL), (0, 3)),
    Event("training rank SIGSTOP", _to_first(RANKS, signal.SIGSTOP), (0, 3)),
    Event("rollout worker SIGKILL", _to_first(ROLLOUT_WORKERS, signal.SIGKILL), (0,)),
    Event("rollout worker SIGSTOP", _to_first(ROLLOUT_WORKERS, signal.SIGSTOP), (0,)),
    Event("environment SIGKILL", _to_first(ENVIRONMENTS, signal.SIGKILL), (0,)),
    Event("raylet SIGKILL", _to_first(RAYLET, signal.SIGKILL), (3,)),
    Event("control process SIGKILL", _to_first(GCS, signal.SIGKILL), (3,)),
    Event("driver SIGTERM", lambda run: run.process.terminate(), (143,)),
    Event("Ctrl-C", lambda run: os.killpg(run.process.pid, signal.SIGINT), (130,)),
)


@dataclass(frozen=True)
class Outcome:
    """`code` 0: the run went on. `left`: processes that had not gone after `gone_s`."""

    event: Event
    code: int
    words: str  # the last line of stderr
    ended_s: float = 0.0
    gone_s: float = 0.0
    left: tuple[str, ...] = field(default=())

    @property
    def as_promised(self) -> bool:
        one_sentence = not self.event.speaks or not self.code or self.words.startswith("error: ")
        return self.code in self.event.codes and one_sentence and not self.left


class TrainingRun:
    """One run folder and the command that trains there. In a session of its own, as of a shell."""

    def __init__(self, folder: Path, arguments: Sequence[str]) -> None:
        self.folder = folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        self._console = folder.with_suffix(".console")
        run = f"trainer.default_local_dir={folder}"
        self._command = [sys.executable, "-m", "verl.trainer.main_ppo", *arguments, run]
        self._known: dict[int, psutil.Process] = {}

    def start(self) -> None:
        environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
        with self._console.open("w") as console:
            self.process = subprocess.Popen(
                self._command,
                cwd=self.folder.parent,
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=console,
                start_new_session=True,
            )
        self._known = {}

    def console(self) -> str:
        return self._console.read_text(errors="replace")

    def descendants(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []

    def records(self) -> list[dict[str, float]]:
        """Those of `metrics.jsonl` that are of training steps."""
        try:
            lines = (self.folder / "metrics.jsonl").read_text().split("\n")
        except FileNotFoundError:
            return []
        whole = [json.loads(line) for line in lines if line.endswith("}")]
        return [record for record in whole if "actor/pg_loss" in record]

    def steps(self) -> int:
        return int(max((record["step"] for record in self.records()), default=0))

    def wait_for_step(self, step: int, seconds: float = STEPS_SECONDS) -> bool:
        """False when the run ends before."""
        deadline = time.monotonic() + seconds
        while self.steps() < step and self.process.poll() is None:
            assert time.monotonic() < deadline, f"no step {step} in {seconds} s\n{self.console()}"
            time.sleep(POLL_S)
        return self.process.poll() is None

    def suffer(self, event: Event) -> Outcome:
        """Strike; returns when the run is a step further than before, or has ended."""
        self._known = {p.pid: p for p in self.descendants()}
        before, began = self._lines(), time.monotonic()
        event.strike(self)
        while self.process.poll() is None and not self._went_on(before, event):
            assert time.monotonic() < began + ENDS_WITHIN_S, f"{event.name}\n{self.console()}"
            time.sleep(POLL_S)
        if self.process.poll() in (None, 0):
            return Outcome(event, 0, self._last_words())
        ended = time.monotonic()
        left = self._left_after(ended + GONE_WITHIN_S)
        gone = time.monotonic() - ended
        code = self.process.returncode
        return Outcome(event, code, self._last_words(), ended - began, gone, left)

    def finish(self) -> int:
        """The exit code of a run that nobody disturbs any more."""
        return self.process.wait(STEPS_SECONDS)

    def end(self) -> None:
        """Whatever still runs, also what was stopped."""
        for process in [*self.descendants(), *self._known.values()]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.kill()
        self.process.wait()

    def _lines(self) -> int:
        return len(self.records())

    def _went_on(self, before: int, event: Event) -> bool:
        """What ends a run takes a moment; the step after the next one is beyond it."""
        return 0 in event.codes and self._lines() >= before + 2

    def _left_after(self, deadline: float) -> tuple[str, ...]:
        while left := [p for p in self._known.values() if _runs(p)]:
            if time.monotonic() > deadline:
                return tuple(_command_line(p) for p in left)
            time.sleep(POLL_S)
        return ()

    def _last_words(self) -> str:
        lines = [line for line in self.console().splitlines() if line.strip()]
        return lines[-1] if lines else ""


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""
