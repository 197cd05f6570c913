"""An environment that says how long its calls take, without the way between two processes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from agent_system.environments.registry import import_object


@dataclass(frozen=True)
class Inner:
    """What is timed: `EnvPackage.make_env` and the options for it."""

    make_env: str
    options: Any


class TimedEnv:
    """Implements `TextEnv` around another one; adds `seconds`, of the call, to every info."""

    def __init__(self, inner: Inner) -> None:
        self._env = import_object(inner.make_env)(inner.options)

    def reset(self, **arguments: Any) -> tuple[str, dict[str, Any]]:
        started = time.perf_counter()
        text, info = self._env.reset(**arguments)
        return text, {**info, "seconds": time.perf_counter() - started}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        started = time.perf_counter()
        text, reward, terminated, truncated, info = self._env.step(action)
        seconds = time.perf_counter() - started
        return text, reward, terminated, truncated, {**info, "seconds": seconds}

    def close(self) -> None:
        self._env.close()
