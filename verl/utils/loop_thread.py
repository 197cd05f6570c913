"""An event loop in a thread of its own, for callers that are not async."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")
_END = object()


class LoopThread:
    """Runs coroutines from ordinary code. The loop lives as long as this object, across calls."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._one_at_a_time = threading.RLock()  # or two that cancel would cancel each other
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin `coroutine`. It is cancelled when the future is."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Wait for `coroutine`. If the wait is interrupted (Ctrl-C), it is cancelled."""
        future = self.submit(coroutine)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def stream(self, items: AsyncGenerator[T, None]) -> Iterator[T]:
        """The items of an async generator. What it started goes on between two of them."""
        try:
            while (item := self.run(_next(items))) is not _END:
                yield item
        except GeneratorExit:  # the caller wants no more
            self.run(_close(items))
            raise

    def cancel(self) -> None:
        """Cancel everything that runs and let it clean up. May be called from another thread than
        the one that waits for it, which gets a CancelledError."""
        with self._one_at_a_time:
            if not self._loop.is_closed():
                self.run(_cancel_others())

    def close(self) -> None:
        """Cancel everything that runs, let it clean up, and end the thread. May be called again."""
        with self._one_at_a_time:
            if self._loop.is_closed():
                return
            self.cancel()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


async def _next(items: AsyncGenerator[T, None]) -> Any:
    return await anext(items, _END)


async def _close(items: AsyncGenerator[T, None]) -> None:
    await items.aclose()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
