"""What asks a run to stop: SIGTERM, Ctrl-C, and a thread that sees the cluster die."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Protocol

from verl.utils.errors import noting, root_cause

logger = logging.getLogger(__name__)

# SLURM and Kubernetes kill 30 s after SIGTERM; saving and closing need the rest.
GRACE_S = 15.0
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Terminated(BaseException):
    """SIGTERM came. As KeyboardInterrupt, no `except Exception` holds it up."""

    def __init__(self) -> None:
        super().__init__("stopped by SIGTERM")


class ClusterLostError(Exception):
    """A process without which Ray cannot go on is gone; the message says which."""


class StopRequests:
    """Within the block a request to stop is raised in the main thread, wherever that is.

    Ray's waits let a KeyboardInterrupt through and nothing else, so that is what handlers raise; it
    leaves the block as `Terminated` or as what `stop` was given, if it was not Ctrl-C. A second
    signal ends the process there and then; Ray's processes and the environments end after it.
    In another thread than the main one this does nothing, as Python allows no handlers there.
    """

    def __init__(self, grace_s: float = GRACE_S) -> None:
        """`grace_s`: for how long `postponed` holds SIGTERM up."""
        self._grace_s = grace_s
        self._found: BaseException | None = None  # by another thread, and not raised yet
        self._reason: BaseException | None = None
        self._holds = False
        self._broken = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is threading.main_thread():
            self._previous = {n: signal.signal(n, self._on_signal) for n in SIGNALS}
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if isinstance(error, KeyboardInterrupt) and self._reason is not None:
            for note in getattr(error, "__notes__", []):
                self._reason.add_note(note)
            raise self._reason from None

    def stop(self, reason: BaseException) -> None:
        """Raise `reason` in the main thread. From another thread."""
        self._found = reason
        signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)  # pyright: ignore[reportArgumentType]

    @property
    def allows_saving(self) -> bool:
        """SIGTERM ended the work between two steps, so that the state is that of a step."""
        return isinstance(self._reason, Terminated) and not self._broken

    @contextmanager
    def postponed(self) -> Iterator[None]:
        """SIGTERM waits for the end of the block, at most for `grace_s`."""
        self._holds = True
        try:
            yield
        except BaseException:
            self._broken = True
            if isinstance(self._reason, Terminated):  # whoever sent it may have ended workers too
                raise KeyboardInterrupt from None
            raise
        finally:
            self._holds = False
        if self._reason is not None:
            raise KeyboardInterrupt

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        found, self._found = self._found, None
        if found is None and self._reason is not None:
            end_at_once(number)
        if isinstance(self._reason, Terminated):  # it was for the whole group, Ray's processes too
            self._broken = True
            raise KeyboardInterrupt
        if found is None and number == signal.SIGINT:
            self._reason = KeyboardInterrupt()
        else:
            self._reason = found or Terminated()
        if self._holds and found is None and number == signal.SIGTERM:
            expiry = threading.Timer(self._grace_s, self._expire)
            expiry.daemon = True
            expiry.start()
            return
        raise KeyboardInterrupt

    def _expire(self) -> None:
        if self._holds:
            self.stop(Terminated())


def end_at_once(number: int) -> None:
    """The process asked for it twice: nothing is closed, finished checkpoints stay."""
    sys.stderr.write("stopped at once by a second signal; finished checkpoints are kept\n")
    sys.stderr.flush()
    os._exit(128 + number)


class Stoppable(Protocol):
    """A trainer between two steps: `step` are finished, and `saved` of them in a checkpoint."""

    stop: StopRequests
    step: int
    saved: int | None

    @property
    def total_steps(self) -> int: ...

    def save(self) -> None: ...


@contextmanager
def saving_when_stopped(trainer: Stoppable) -> Iterator[None]:
    """Around a trainer's steps: whatever ends them tells its step, and SIGTERM keeps the steps that
    are finished."""
    try:
        with noting(lambda: f"it was in step {trainer.step + 1} of {trainer.total_steps}"):
            yield
    except KeyboardInterrupt:
        if trainer.stop.allows_saving and trainer.step > 0 and trainer.saved != trainer.step:
            try:
                trainer.save()
            except Exception as error:  # the workers may have been asked to stop, too
                logger.warning("no checkpoint of step %d: %s", trainer.step, root_cause(error))
        raise
