"""vLLM's engine in a process that is forked, not started: what many architectures are measured by.

The settings, the requests and the reload are the product's own; what is left out is the frontend
with its processes, each of which imports vLLM anew.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from verl.config.actor import ActorRolloutRefConfig, RolloutConfig
from verl.config.model import ModelConfig
from verl.config.plan import EnginePlan
from verl.workers.rollout.base import Generation, SamplingSettings, response_tokens
from verl.workers.weight_sync import WeightUpdate

MAX_LEN = 64  # not less than the conversations have
KV_CACHE_GB = 0.1


class ForkedEngine:
    """Of a `RolloutEngine`, what `wrong_in_engine` calls. The process that makes it has to have
    imported vLLM and no threads."""

    def __init__(self, folder: Path) -> None:
        context = get_context("fork")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(folder, other), daemon=True)
        self._process.start()
        other.close()

    def start(self) -> None:
        self._call("start")

    async def generate(
        self, prompt_ids: Sequence[int], sampling: SamplingSettings, *, trajectory_id: str
    ) -> Generation:
        return self._call("generate", list(prompt_ids), sampling)

    def release(self, trajectory_id: str) -> None:
        """vLLM evicts by itself."""

    def load_weights(self, update: WeightUpdate) -> None:
        self._call("load_weights", update)

    def close(self) -> None:
        self._process.kill()
        self._process.join()

    def _call(self, method: str, *arguments: Any) -> Any:
        self._pipe.send((method, arguments))
        try:
            result = self._pipe.recv()
        except EOFError:
            raise RuntimeError("vLLM's process died") from None
        if isinstance(result, Exception):
            raise result
        return result


class _Engine:
    """In the forked process."""

    def __init__(self, folder: Path) -> None:
        self._config = ActorRolloutRefConfig(
            model=ModelConfig(path=str(folder)),
            rollout=RolloutConfig(name="vllm", max_num_seqs=4, cpu_kv_cache_gb=KV_CACHE_GB),
        )

    def start(self) -> None:
        from vllm import LLM

        from verl.workers.rollout.vllm_rollout.arguments import engine_args
        from verl.workers.rollout.vllm_rollout.model_facts import check_on_cpu, read_model_facts

        arguments = engine_args(self._config, EnginePlan("vllm", "cpu", torch.float32, MAX_LEN))
        self._facts = read_model_facts(self._config.model)
        check_on_cpu(self._facts, self._config.model.path)
        self._llm = LLM(**(arguments | {"distributed_executor_backend": "uni"}))

    def generate(self, prompt_ids: list[int], sampling: SamplingSettings) -> Generation:
        from verl.workers.rollout.vllm_rollout.requests import sampling_params

        room = response_tokens(prompt_ids, sampling, MAX_LEN)
        params = sampling_params(sampling, room, self._facts.stop_token_ids)
        (output,) = self._llm.generate([{"prompt_token_ids": prompt_ids}], params, use_tqdm=False)
        completion = output.outputs[0]
        tokens = tuple(completion.token_ids)
        log_probs = tuple(completion.logprobs.logprobs[: len(tokens)])
        return Generation(tokens, log_probs, completion.finish_reason, weight_version=0)

    def load_weights(self, update: WeightUpdate) -> None:
        from verl.workers.rollout.vllm_rollout.weight_files import weight_file

        self._facts.check(update.tensors)
        with weight_file(update.tensors) as file:
            self._llm.reset_prefix_cache()
            self._llm.collective_rpc("reload_from_file", args=(str(file),))


def _serve(folder: Path, pipe: Any) -> None:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm.model_executor.models import registry

    from verl.workers.rollout.vllm_rollout.environment import vllm_environment

    causes: list[Exception] = []  # that vLLM only logs

    def inspect(model: Callable[[], Any]) -> Any:
        try:
            return model()  # not in a process of its own: this is one already
        except Exception as error:
            causes.append(error)
            raise

    registry._run_in_subprocess = inspect
    engine = _Engine(folder)
    with vllm_environment("cpu", str(folder), {}):
        while True:
            try:
                method, arguments = pipe.recv()
            except EOFError:
                return
            try:
                pipe.send(getattr(engine, method)(*arguments))
            except Exception as error:  # whatever a model does
                pipe.send(RuntimeError(_told(causes[-1] if causes else error)))


def _told(error: Exception) -> str:
    """Its first sentence, without pydantic's title of it; where it was raised if it has none."""
    lines = str(error).strip().splitlines()
    if type(error).__name__ == "ValidationError":
        return lines[1].strip().removeprefix("Value error, ").partition(". ")[0]
    place = traceback.extract_tb(error.__traceback__)[-1]
    raised = f"in {place.name} of {Path(place.filename).name}: {place.line}"
    return f"{type(error).__name__}: {lines[0].partition('. ')[0] if lines else raised}"
