"""The engine's end of vLLM's weight transfer (nccl, ipc): one stage of an update after another."""

from __future__ import annotations

from typing import Any

from vllm.distributed.weight_transfer.base import (
    WeightTransferInitRequest,
    WeightTransferUpdateRequest,
)
from vllm.v1.engine.async_llm import AsyncLLM


class TransferReceiver:
    """Takes an engine through `connect` once and `start`, `update` (repeatedly), `finish` each
    time. Generation is paused from start to finish; requests that run finish before."""

    def __init__(self, llm: AsyncLLM) -> None:
        self._llm = llm
        self._slept = False
        self._connected = False

    async def handle(self, stage: str, payload: Any) -> bool:
        """Returns whether the engine is connected; `look` does no more than that.

        Args:
            payload: vLLM's init info to `connect`, its update info to `update`, the version to
                `finish`; else None.

        Raises:
            RuntimeError: vLLM refuses, or the engine died.
        """
        match stage:
            case "connect":
                await self._connect(payload)
            case "start":
                await self._start()
            case "update":
                await self._llm.update_weights(WeightTransferUpdateRequest(update_info=payload))
            case "finish":
                await self._finish(payload)
            case "look":
                pass
            case _:
                raise ValueError(f"unknown stage '{stage}' of a weight transfer")
        return self._connected

    async def _connect(self, init_info: dict[str, Any]) -> None:
        """Join the trainer's group, anew if this engine was in one (another engine restarted)."""
        if self._connected:
            await self._llm.shutdown_weight_transfer_engine()
        await self._llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info=init_info))
        self._connected = True

    async def _start(self) -> None:
        """Pausing and sleeping both forget the prefix cache, which is of the old weights."""
        self._slept = await self._llm.is_sleeping()
        if self._slept:  # room for the weights; the cache has to wait for the trainer's buffers
            await self._llm.wake_up(tags=["weights"])
        else:
            await self._llm.pause_generation(mode="wait", clear_cache=True)
        await self._llm.start_weight_update()

    async def _finish(self, version: int) -> None:
        await self._llm.finish_weight_update(weight_version=str(version))
        if self._slept:
            await self._llm.wake_up(tags=["kv_cache"])  # and so the engine is awake again
        else:
            await self._llm.resume_generation()
