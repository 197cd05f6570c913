"""The engine on vLLM: `AsyncLLM` on an event loop of its own, in front of vLLM's processes."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import threading
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
    Sequence,
)
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from verl.config.actor import ActorRolloutRefConfig
from verl.utils.loop_thread import LoopThread
from verl.workers.rollout.base import (
    ENGINES,
    EngineDiedError,
    Generation,
    RolloutEngine,
    SamplingSettings,
)
from verl.workers.rollout.vllm_rollout.arguments import engine_args, uses_sleep_mode
from verl.workers.rollout.vllm_rollout.environment import vllm_environment
from verl.workers.rollout.vllm_rollout.model_facts import (
    ModelFacts,
    check_cpu_head_size,
    read_model_facts,
)
from verl.workers.rollout.vllm_rollout.weight_files import adapter_folder, weight_file, zeros
from verl.workers.weight_sync import LoraAdapter, WeightUpdate
from verl.workers.weight_sync.transport import resolve_transport, transport_environment

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest

T = TypeVar("T")
POLL_S = 0.2  # how soon a call to a dead engine is given up
SHUTDOWN_S = 1  # what vLLM's processes have to end by themselves; then they are killed


class VLLMRollout:
    """A `RolloutEngine`, where its methods are described.

    Weight versions are labels that vLLM's engine process attaches to the tokens it samples, so a
    request that waited in vLLM's queue while weights were replaced carries the new version.
    """

    def __init__(
        self,
        arguments: dict[str, Any],
        facts: ModelFacts,
        *,
        device: str,
        adapter: LoraAdapter | None = None,
        sleep_level: int = 0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """
        Args:
            arguments: of `AsyncEngineArgs`.
            device: cuda or cpu.
            adapter: updates bring LoRA matrices of this kind instead of all weights.
            sleep_level: vLLM's: 1 keeps the weights in host memory, 2 drops them; 0: no sleep.
            environment: further variables for vLLM's processes.
        """
        self._arguments = arguments
        self._facts = facts
        self._device = device
        self._adapter = adapter
        self._sleep_level = sleep_level
        self._environment = environment or {}
        self._lora: LoRARequest | None = None
        self._max_model_len: int = arguments["max_model_len"]
        self._request_ids = itertools.count()
        self._stats = {"generated_tokens": 0, "prefilled_tokens": 0, "cache_hit_tokens": 0}
        self._closing = threading.Lock()  # after close() nothing is submitted
        self._closed = False
        self._updating = asyncio.Lock()

    # --- called from any thread -----------------------------------------------------------------

    def start(self) -> None:
        self._loop = LoopThread(name="vllm-rollout")
        with vllm_environment(self._device, self._arguments["model"], self._environment):
            self._loop.run(self._start())
        if self._adapter is not None:  # from the first request on, all use the one adapter
            self.load_weights(WeightUpdate(0, zeros(self._facts.shapes), self._adapter))

    async def generate(
        self, prompt_ids: Sequence[int], sampling: SamplingSettings, *, trajectory_id: str
    ) -> Generation:
        from verl.workers.rollout.vllm_rollout.requests import sampling_params

        room = self._max_model_len - len(prompt_ids)
        if len(prompt_ids) == 0 or room < 1 or sampling.max_tokens < 1:
            raise ValueError(
                f"a prompt of {len(prompt_ids)} tokens and max_tokens={sampling.max_tokens} leave "
                f"nothing to generate within max_model_len={self._max_model_len}"
            )
        max_tokens = min(sampling.max_tokens, room)
        params = sampling_params(sampling, max_tokens, self._facts.stop_token_ids)
        ids = [int(token) for token in prompt_ids]
        return await asyncio.wrap_future(self._submit(self._generate, ids, params))

    def release(self, trajectory_id: str) -> None:
        """vLLM evicts what was not used for longest by itself."""

    def load_weights(self, update: WeightUpdate) -> None:
        self._facts.check(update.tensors)
        with self._as_files(update) as path:  # written while running requests finish
            self._submit(self._update, update, path).result()

    def transfer(self, stage: str, payload: Any) -> bool:
        """One stage of vLLM's own weight transfer; see `TransferReceiver.handle`."""
        return self._submit(self._transfer, stage, payload).result()

    def sleep(self) -> None:
        if self._sleep_level > 0:
            self._submit(self._sleep).result()

    def stats(self) -> dict[str, float]:
        return dict(self._stats)

    def close(self) -> None:
        with self._closing:
            if self._closed:
                return
            self._closed = True
        self._loop.run(self._stop())
        self._loop.close()
        gc.collect()  # vLLM's frontend holds itself in cycles and must not outlive the interpreter

    def _submit(self, method: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> Future[T]:
        with self._closing:
            if self._closed:
                raise RuntimeError("the rollout engine is closed")
            return self._loop.submit(method(*args))

    def _as_files(self, update: WeightUpdate):
        if update.adapter is None:
            return weight_file(update.tensors)
        return adapter_folder(update.tensors, update.adapter)

    # --- the engine's event loop ----------------------------------------------------------------

    async def _start(self) -> None:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        from verl.workers.weight_sync.receiver import TransferReceiver

        self._llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**self._arguments))
        self._receiver = TransferReceiver(self._llm)
        await self._call(self._llm.update_weight_version("0"))
        if self._arguments.get("distributed_executor_backend") != "ray":  # whose actors Ray ends
            pids = os.getpid(), self._llm.engine_core.resources.engine_manager.processes[0].pid
            await self._call(self._llm.collective_rpc("end_with_owner", args=pids))

    async def _generate(self, prompt_ids: list[int], params: SamplingParams) -> Generation:
        from verl.workers.rollout.vllm_rollout.requests import to_generation

        with self._engine_errors():
            async for output in self._llm.generate(
                {"prompt_token_ids": prompt_ids},
                params,
                request_id=str(next(self._request_ids)),
                lora_request=self._lora,
            ):
                last = output
            generation = to_generation(last)
        self._stats["generated_tokens"] += len(generation.token_ids)
        self._stats["prefilled_tokens"] += len(prompt_ids) - last.num_cached_tokens
        self._stats["cache_hit_tokens"] += last.num_cached_tokens
        return generation

    async def _update(self, update: WeightUpdate, path: str) -> None:
        async with self._updating:
            if update.checksum is not None and update.adapter is None:
                await self._compare_checksum(update, path)
            async with self._paused():
                if update.adapter is None:
                    await self._call(self._llm.collective_rpc("reload_from_file", args=(path,)))
                else:
                    await self._replace_adapter(path)
                await self._call(self._llm.update_weight_version(str(update.version)))

    async def _compare_checksum(self, update: WeightUpdate, path: str) -> None:
        """Of what the workers read: vLLM keeps weights fused and, on a CPU, re-packed."""
        read = await self._call(self._llm.collective_rpc("checksum_of_file", args=(path,)))
        if any(checksum != update.checksum for checksum in read):
            raise RuntimeError(
                f"the weights of version {update.version} did not arrive as the trainer sent them"
            )

    async def _replace_adapter(self, path: str) -> None:
        from vllm.lora.request import LoRARequest

        adapter = {"lora_name": "policy", "lora_int_id": 1, "lora_path": path}
        await self._call(self._llm.add_lora(LoRARequest(**adapter, load_inplace=True)))
        self._lora = LoRARequest(**adapter)

    @asynccontextmanager
    async def _paused(self) -> AsyncIterator[None]:
        """Running requests finish, new ones wait, and the prefix cache is emptied. An engine that
        may be left with half of the new weights is ended."""
        await self._call(self._llm.pause_generation(mode="wait", clear_cache=True))
        try:
            sleeps = await self._call(self._llm.is_sleeping())
            if sleeps:
                await self._call(self._llm.wake_up(["weights"]))
            yield
            if sleeps:
                await self._call(self._llm.wake_up(["kv_cache"]))
            await self._call(self._llm.resume_generation())
        except Exception:
            self._llm.shutdown(timeout=0)
            raise

    async def _transfer(self, stage: str, payload: Any) -> bool:
        return await self._call(self._receiver.handle(stage, payload))

    async def _sleep(self) -> None:
        await self._call(self._llm.sleep(level=self._sleep_level, mode="wait"))

    async def _stop(self) -> None:
        self._llm.shutdown(timeout=SHUTDOWN_S)
        del self._llm, self._receiver

    async def _call(self, call: Awaitable[T]) -> T:
        """The result of a call to vLLM's process, which never answers when it dies."""
        with self._engine_errors():
            answer = asyncio.ensure_future(call)
            while not (await asyncio.wait({answer}, timeout=POLL_S))[0]:
                if self._llm.errored:
                    answer.cancel()
            return answer.result()

    @contextmanager
    def _engine_errors(self) -> Iterator[None]:
        try:
            yield
        except (Exception, asyncio.CancelledError) as error:
            if self._closed or self._llm.errored:
                raise EngineDiedError("vLLM's engine does not serve any more") from error
            raise


@ENGINES.register("vllm")
def build_vllm_rollout(
    config: ActorRolloutRefConfig, device: str, max_model_len: int
) -> RolloutEngine:
    """`VLLMRollout` of `config.model`. vLLM is imported here and not before.

    Raises:
        UserError: the model is missing or not one that vLLM runs on `device`.
    """
    lora = config.model.lora_rank > 0
    transport = resolve_transport(config.rollout, device, "vllm", lora)
    arguments = engine_args(config, device, max_model_len, transport)
    facts = read_model_facts(config.model)
    if device == "cpu":
        with vllm_environment(device, arguments["model"], {}):
            check_cpu_head_size(facts.head_size, config.model.path)
    # with adapters the base weights do not come again: sleeping has to keep them
    level = 1 if lora else 2
    return VLLMRollout(
        arguments,
        facts,
        device=device,
        adapter=LoraAdapter(config.model.lora_rank, config.model.lora_alpha) if lora else None,
        sleep_level=level if uses_sleep_mode(config.rollout, device) else 0,
        environment=transport_environment(transport),
    )
