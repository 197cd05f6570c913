"""vLLM's frontend `AsyncLLM` and the processes behind it: started, called, mourned and ended."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.utils import CoreEngineProcManager

from verl.workers.rollout.base import EngineDiedError

T = TypeVar("T")
POLL_S = 0.2  # how soon a call to a dead engine is given up
SHUTDOWN_S = 1  # what vLLM's processes have to end by themselves; then they are killed


class EngineProcess:
    """`llm`, and what it lacks: calls that do not wait for a dead process forever, one error for
    every way to die, and an end together with this process. All on one event loop."""

    def __init__(self, llm: AsyncLLM) -> None:
        self.llm = llm

    @classmethod
    async def start(cls, arguments: dict[str, Any]) -> EngineProcess:
        """Returns when requests are served. `arguments` are those of `AsyncEngineArgs`."""
        process = cls(AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments)))
        if arguments.get("distributed_executor_backend") != "ray":  # Ray ends its own actors
            await process.rpc("end_with_owner", os.getpid(), process.pid)
        return process

    @property
    def pid(self) -> int:
        """Of vLLM's scheduling process, the parent of its workers."""
        manager = self.llm.engine_core.resources.engine_manager
        assert isinstance(manager, CoreEngineProcManager), "the other kind is of Ray's actors"
        pid = manager.processes[0].pid
        assert pid is not None, "it runs"
        return pid

    async def rpc(self, method: str, *arguments: Any) -> list[Any]:
        """What a method of the worker extension returns in every worker."""
        return await self.call(self.llm.collective_rpc(method, args=arguments))

    async def call(self, call: Awaitable[T]) -> T:
        """The result of a call to vLLM's process, which never answers when it dies."""
        with self.errors():
            answer = asyncio.ensure_future(call)
            while not (await asyncio.wait({answer}, timeout=POLL_S))[0]:
                if self.llm.errored:
                    answer.cancel()
            return answer.result()

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Whatever is raised inside is an EngineDiedError if the engine died or was ended."""
        try:
            yield
        except (Exception, asyncio.CancelledError) as error:
            if self.llm.errored:
                raise EngineDiedError("vLLM's engine does not serve any more") from error
            raise

    def end(self) -> None:
        """Open requests and calls fail. May be called again."""
        self.llm.shutdown(timeout=SHUTDOWN_S)
