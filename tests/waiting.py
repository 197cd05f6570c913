"""Waiting for what happens in other threads and processes, never for a guessed time.

The seconds are when to give up, on a machine that has much else to do.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil


def wait_until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Raises AssertionError when it does not come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain"
        time.sleep(0.02)


async def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """The same where a loop goes on meanwhile."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def all_gone(processes: Iterable[psutil.Process], seconds: float = 60.0) -> bool:
    return not psutil.wait_procs(list(processes), timeout=seconds)[1]


@contextmanager
def running_python(code: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that the test ends; one that fails before it does kills it."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options) as process:
        try:
            yield process
        except BaseException:
            process.kill()  # or leaving the block would wait for it
            raise
