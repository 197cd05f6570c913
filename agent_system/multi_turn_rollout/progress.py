"""Who waits for what: a rollout that stalls says where."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

logger = logging.getLogger(__name__)


class ProgressWatch:
    """Logs a warning when no episode has finished anything for `warn_after_s` seconds.

    `describe_env_waits` names the environment slots that have waited for longer than the given
    seconds (`EnvPool.describe_waiting`).
    """

    def __init__(
        self, warn_after_s: float, describe_env_waits: Callable[[float], list[str]]
    ) -> None:
        self._warn_after_s = warn_after_s
        self._describe_env_waits = describe_env_waits
        self._waiting: Counter[str] = Counter()
        self._last_progress = time.monotonic()

    @contextmanager
    def waiting_for(self, phase: str, timing_s: dict[str, float]) -> Iterator[None]:
        """One awaited call of `phase` (reset, env, generate); adds its seconds to `timing_s`."""
        started = time.monotonic()
        self._waiting[phase] += 1
        try:
            yield
        finally:
            self._waiting[phase] -= 1
            self._last_progress = time.monotonic()
            timing_s[phase] = timing_s.get(phase, 0.0) + self._last_progress - started

    @asynccontextmanager
    async def running(self):
        """Watch while the block runs."""
        self._last_progress = time.monotonic()
        watcher = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)

    async def _watch(self) -> None:
        next_warning = self._last_progress + self._warn_after_s
        while True:
            await asyncio.sleep(max(next_warning - time.monotonic(), 0.01))
            stalled_s = time.monotonic() - self._last_progress
            if stalled_s >= self._warn_after_s:
                logger.warning(
                    "the rollout has made no progress for %.0f s: %s", stalled_s, self._describe()
                )
                next_warning = time.monotonic() + self._warn_after_s
            else:
                next_warning = self._last_progress + self._warn_after_s

    def _describe(self) -> str:
        """What the episodes in flight wait for."""
        waits = self._describe_env_waits(self._warn_after_s / 2)
        if self._waiting["generate"]:
            waits.append(f"{self._waiting['generate']} episodes wait for the engine")
        return "; ".join(waits) or "all episodes wait for a free environment slot"
