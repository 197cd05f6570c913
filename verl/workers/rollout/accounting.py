"""What an engine was asked and how busy it was, and the metrics of all workers together."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

# What is logged here: name, unit, how the values of a step become one, meaning.
METRICS = (
    ("rollout/generated_tokens", "tokens", "sum", "sampled by all engines"),
    ("rollout/prefilled_tokens", "tokens", "sum", "of prompts that had to be computed"),
    ("rollout/prefix_cache_hit_rate", "share", "-", "of prompt tokens that were in the cache"),
    (
        "rollout/engine_idle_share",
        "share",
        "mean",
        "of the seconds of collecting in which an engine had no request",
    ),
    ("rollout/tokens_per_second", "tokens/s", "-", "sampled by all engines while collecting"),
    ("rollout/engine_restarts", "engines", "sum", "that died and were started anew"),
    ("rollout/request_timeouts", "requests", "sum", "cancelled after `request_timeout_s`"),
    ("rollout/env_replacements", "environments", "sum", "that died or hung and were started anew"),
    (
        "rollout/tasks_loaded_ahead",
        "tasks",
        "sum",
        "loaded by environments before they were played",
    ),
)


class RequestLog:
    """Counts requests and the wall seconds in which at least one was open. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests = 0
        self._timeouts = 0
        self._open = 0
        self._busy_since = 0.0  # while a request is open
        self._busy_seconds = 0.0  # until the last one ended

    @contextmanager
    def open_request(self) -> Iterator[None]:
        with self._lock:
            if self._open == 0:
                self._busy_since = time.monotonic()
            self._requests += 1
            self._open += 1
        try:
            yield
        finally:
            with self._lock:
                self._open -= 1
                if self._open == 0:
                    self._busy_seconds += time.monotonic() - self._busy_since

    def count_timeout(self) -> None:
        with self._lock:
            self._timeouts += 1

    def counters(self) -> dict[str, float]:
        """`requests`, `timeouts` and `busy_seconds` so far."""
        with self._lock:
            busy = self._busy_seconds
            if self._open:
                busy += time.monotonic() - self._busy_since
            return {"requests": self._requests, "timeouts": self._timeouts, "busy_seconds": busy}


def engine_metrics(workers: Sequence[Mapping[str, float]], seconds: float) -> dict[str, float]:
    """`rollout/*` of what the workers did in `seconds` of collecting.

    `workers`: what the counters of each (`RolloutWorker.stats`) grew by. What nothing was measured
    for is absent: a share of no tokens, a rate of no seconds.
    """

    def total(name: str) -> float:
        return float(sum(counters[name] for counters in workers))

    generated = total("engine/generated_tokens")
    prefilled, hit = total("engine/prefilled_tokens"), total("engine/cache_hit_tokens")
    metrics = {
        "rollout/generated_tokens": generated,
        "rollout/prefilled_tokens": prefilled,
        "rollout/engine_restarts": total("engine/restarts"),
        "rollout/request_timeouts": total("engine/timeouts"),
        "rollout/env_replacements": total("env/replacements"),
        "rollout/tasks_loaded_ahead": total("env/loaded_ahead"),
    }
    if prefilled + hit > 0:
        metrics["rollout/prefix_cache_hit_rate"] = hit / (prefilled + hit)
    if seconds > 0:
        idle = [1 - counters["engine/busy_seconds"] / seconds for counters in workers]
        metrics["rollout/engine_idle_share"] = float(np.mean(idle))
        metrics["rollout/tokens_per_second"] = generated / seconds
    return metrics
