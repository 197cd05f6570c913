"""The engine on vLLM: an event loop of its own, and vLLM's processes behind it."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from verl.config.actor import ActorRolloutRefConfig
from verl.config.plan import EnginePlan
from verl.config.transport import transport_environment
from verl.utils.loop_thread import LoopThread
from verl.workers.model_loading import load_tokenizer
from verl.workers.rollout.base import (
    Generation,
    RolloutEngine,
    SamplingSettings,
    response_tokens,
)
from verl.workers.rollout.stopping import StopStrings
from verl.workers.rollout.vllm_rollout.arguments import engine_args, uses_sleep_mode
from verl.workers.rollout.vllm_rollout.environment import vllm_environment, vllm_folder
from verl.workers.rollout.vllm_rollout.model_facts import (
    ModelFacts,
    check_on_cpu,
    read_model_facts,
)
from verl.workers.rollout.vllm_rollout.weight_files import (
    adapted_modules,
    weight_file,
    zeros,
)
from verl.workers.weight_sync import LoraAdapter, WeightUpdate

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams
    from vllm.inputs import TokensPrompt
    from vllm.lora.request import LoRARequest

T = TypeVar("T")


class VLLMRollout:
    """A `RolloutEngine`, where its methods are described.

    Weight versions are labels that vLLM's engine process attaches to the tokens it samples, so a
    request that waited in vLLM's queue while weights were replaced carries the new version.
    """

    def __init__(
        self,
        arguments: dict[str, Any],
        facts: ModelFacts,
        is_stopped: StopStrings,
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
        self._is_stopped = is_stopped
        self._device = device
        self._adapter = adapter
        self._sleep_level = sleep_level
        self._environment = environment or {}
        self._lora: LoRARequest | None = None
        self._max_model_len: int = arguments["max_model_len"]
        self._request_ids = itertools.count()
        self._stats = {"generated_tokens": 0, "prefilled_tokens": 0, "cache_hit_tokens": 0}
        self._folder = ExitStack()  # holds the one for vLLM's temporary files
        self._closing = threading.Lock()  # after close() nothing is submitted
        self._closed = False
        self._updating = asyncio.Lock()

    # --- called from any thread -----------------------------------------------------------------

    def start(self) -> None:
        self._loop = LoopThread(name="vllm-rollout")
        folder = self._folder.enter_context(vllm_folder())
        model, more = self._arguments["model"], self._environment
        with vllm_environment(self._device, model, more, folder):
            self._loop.run(self._start())
        if self._adapter is not None:  # from the first request on, all use the one adapter
            self.load_weights(WeightUpdate(0, zeros(self._facts.shapes), self._adapter))

    async def generate(
        self, prompt_ids: Sequence[int], sampling: SamplingSettings, *, trajectory_id: str
    ) -> Generation:
        max_tokens = response_tokens(prompt_ids, sampling, self._max_model_len)
        ids = [int(token) for token in prompt_ids]
        return await asyncio.wrap_future(self._submit(self._generate, ids, sampling, max_tokens))

    def release(self, trajectory_id: str) -> None:
        """vLLM evicts what was not used for longest by itself."""

    def load_weights(self, update: WeightUpdate) -> None:
        self._facts.check(update.tensors)
        with weight_file(update.tensors, update.adapter) as file:  # while running requests finish
            self._submit(self._update, update, file).result()

    def transfer(self, stage: str, payload: Any) -> bool:
        """One stage of vLLM's own weight transfer; see `TransferReceiver.handle`."""
        return self._submit(self._transfer, stage, payload).result()

    def score(self, rows: Sequence[Sequence[int]]) -> list[list[float]] | None:
        """See `ScoringEngine`. vLLM cannot where the head has an adapter: it dies."""
        if "lm_head" in self._arguments.get("lora_target_modules", ()):
            return None
        return self._submit(self._score, [[int(token) for token in row] for row in rows]).result()

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
        with self._folder:
            self._loop.run(self._stop())
            self._loop.close()
        gc.collect()  # vLLM's frontend holds itself in cycles and must not outlive the interpreter

    def _submit(self, method: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> Future[T]:
        with self._closing:
            if self._closed:
                raise RuntimeError("the rollout engine is closed")
            return self._loop.submit(method(*args))

    # --- the engine's event loop ----------------------------------------------------------------

    async def _start(self) -> None:
        from verl.workers.rollout.vllm_rollout.process import EngineProcess
        from verl.workers.weight_sync.receiver import TransferReceiver

        self._process = await EngineProcess.start(self._arguments)
        self._llm = self._process.llm
        self._receiver = TransferReceiver(self._llm)
        await self._process.call(self._llm.update_weight_version("0"))

    async def _generate(
        self, prompt_ids: list[int], sampling: SamplingSettings, max_tokens: int
    ) -> Generation:
        """vLLM cuts at every stop string. Where it stands in the reasoning, and so does not count,
        another request goes on from the cut; all before it is cached."""
        from verl.workers.rollout.vllm_rollout.requests import (
            ended_by_text,
            joined,
            sampling_params,
            to_generation,
        )

        parts: list[Generation] = []
        while True:
            known = [token for part in parts for token in part.token_ids]
            room = max_tokens - len(known)
            params = sampling_params(sampling, room, self._facts.stop_token_ids, len(known))
            output = await self._sample([*prompt_ids, *known], params)
            parts.append(to_generation(output))
            if parts[-1].weight_version != parts[0].weight_version:
                parts = []  # new weights came in between, and a response is of one version
                continue
            response = joined(parts)
            if not ended_by_text(output) or self._is_stopped(response.token_ids, sampling):
                return response
            if len(response.token_ids) == max_tokens:
                return replace(response, finish_reason="length")

    async def _sample(self, ids: list[int], params: SamplingParams) -> RequestOutput:
        with self._process.errors():
            output = await self._answer({"prompt_token_ids": ids}, params)
        cached = output.num_cached_tokens or 0
        self._stats["generated_tokens"] += len(output.outputs[0].token_ids)
        self._stats["prefilled_tokens"] += len(ids) - cached
        self._stats["cache_hit_tokens"] += cached
        return output

    async def _score(self, rows: list[list[int]]) -> list[list[float]]:
        from verl.workers.rollout.vllm_rollout.requests import prompt_log_probs, scoring_params

        # a salt of their own: no other prompt finds these in the prefix cache
        prompts: list[TokensPrompt] = [
            {"prompt_token_ids": row, "cache_salt": "score"} for row in rows
        ]
        with self._process.errors():
            answers = [self._answer(prompt, scoring_params()) for prompt in prompts]
            return [prompt_log_probs(output) for output in await asyncio.gather(*answers)]

    async def _answer(self, prompt: TokensPrompt, params: SamplingParams) -> RequestOutput:
        outputs = self._llm.generate(
            prompt, params, request_id=str(next(self._request_ids)), lora_request=self._lora
        )
        *_, output = [output async for output in outputs]
        return output

    async def _update(self, update: WeightUpdate, file: Path) -> None:
        async with self._updating:
            if update.checksum is not None:
                await self._compare_checksum(update, file)
            async with self._paused():
                if update.adapter is None:
                    await self._process.rpc("reload_from_file", str(file))
                else:
                    await self._replace_adapter(file.parent)
                await self._process.call(self._llm.update_weight_version(str(update.version)))

    async def _compare_checksum(self, update: WeightUpdate, file: Path) -> None:
        """Of what the workers read: vLLM keeps weights fused and, on a CPU, re-packed."""
        read = await self._process.rpc("checksum_of_file", str(file))
        if any(checksum != update.checksum for checksum in read):
            raise RuntimeError(
                f"the weights of version {update.version} did not arrive as the trainer sent them"
            )

    async def _replace_adapter(self, folder: Path) -> None:
        from vllm.lora.request import LoRARequest

        adapter = {"lora_name": "policy", "lora_int_id": 1, "lora_path": str(folder)}
        await self._process.call(self._llm.add_lora(LoRARequest(**adapter, load_inplace=True)))
        self._lora = LoRARequest(**adapter)

    @asynccontextmanager
    async def _paused(self) -> AsyncIterator[None]:
        """Running requests finish, new ones wait, and the prefix cache is emptied. An engine that
        may be left with half of the new weights is ended."""
        process, llm = self._process, self._llm
        sleeps = await process.call(llm.is_sleeping())  # asked first: of a paused one it is true
        await process.call(llm.pause_generation(mode="wait", clear_cache=True))
        try:
            if sleeps:
                await process.call(llm.wake_up(["weights"]))
            yield
            if sleeps:
                await process.call(llm.wake_up(["kv_cache"]))
            await process.call(llm.resume_generation())
        except Exception:
            process.end()
            raise

    async def _transfer(self, stage: str, payload: Any) -> bool:
        return await self._process.call(self._receiver.handle(stage, payload))

    async def _sleep(self) -> None:
        await self._process.call(self._llm.sleep(level=self._sleep_level, mode="wait"))

    async def _stop(self) -> None:
        if not hasattr(self, "_process"):  # it did not start
            return
        self._process.end()
        del self._process, self._llm, self._receiver


def build_vllm_rollout(config: ActorRolloutRefConfig, plan: EnginePlan) -> RolloutEngine:
    """`VLLMRollout` of `config.model`.

    Raises:
        UserError: the model is missing or not one that vLLM runs on `plan.device`.
    """
    model, device = config.model, plan.device
    arguments = engine_args(config, plan)
    facts = read_model_facts(model)
    if plan.takes_adapters:
        # room for adapters of no other layer; an adapter of the head would also keep vLLM from
        # giving log-probs of prompts
        arguments["lora_target_modules"] = adapted_modules(facts.shapes)
    if device == "cpu":
        with vllm_environment(device, arguments["model"], {}):
            check_on_cpu(facts, model.path)
    # with adapters the base weights do not come again: sleeping has to keep them
    level = 1 if plan.takes_adapters else 2
    return VLLMRollout(
        arguments,
        facts,
        StopStrings(load_tokenizer(model)),
        device=device,
        adapter=LoraAdapter.of(model) if plan.takes_adapters else None,
        sleep_level=level if uses_sleep_mode(config.rollout, device) else 0,
        environment=transport_environment(plan.transport),
    )
