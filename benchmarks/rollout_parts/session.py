"""A rollout engine of the trainer for measurements in this process."""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch

from agent_system.types import SamplingParams
from verl.config.compose import compose_config
from verl.config.model import ModelConfig
from verl.config.plan import make_plan
from verl.config.root import PPOConfig
from verl.utils.loop_thread import LoopThread
from verl.workers.model_loading import load_causal_lm, load_tokenizer
from verl.workers.rollout.base import Generation, RolloutEngine, SamplingSettings
from verl.workers.rollout.engines import build_engine
from verl.workers.weight_sync import WeightUpdate, pack_weights

T = TypeVar("T")
WARM_UP_IDS = tuple(range(3, 67))  # any prompt: the first requests of an engine are slow


def add_engine_arguments(parser: argparse.ArgumentParser, *, seqs: int, layers: int) -> None:
    parser.add_argument("--engine", default="auto", help="vllm, hf, or auto: vllm where installed")
    parser.add_argument("--model", default="smollm2", help="as actor_rollout_ref.model.path")
    parser.add_argument("--layers", type=int, default=layers, help="only the first; 0: all")
    parser.add_argument(
        "--dtype", default="bfloat16", help="float32 or bfloat16, of engine and trainer"
    )
    parser.add_argument("--max-num-seqs", type=int, default=seqs, help="requests decoded together")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))


@contextmanager
def open_model(options: argparse.Namespace) -> Iterator[str]:
    """The model of the command line, as a path: cut to its first layers it lasts as the block."""
    if options.layers == 0:
        yield options.model
        return
    whole = ModelConfig(path=options.model)
    model = load_causal_lm(whole, torch.bfloat16)
    trunk = model.get_decoder()
    trunk.layers = trunk.layers[: options.layers]
    model.config.num_hidden_layers = len(trunk.layers)
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        load_tokenizer(whole).save_pretrained(folder)
        yield folder


def make_config(options: argparse.Namespace, model: str, overrides: Sequence[str]) -> PPOConfig:
    """The preset `smollm2` with the engine of the command line, a model's path and `overrides`."""
    _, config = compose_config(
        [
            f"actor_rollout_ref.rollout.name={options.engine}",
            f"actor_rollout_ref.rollout.dtype={options.dtype}",
            f"actor_rollout_ref.rollout.max_num_seqs={options.max_num_seqs}",
            f"actor_rollout_ref.model.path={model}",
            f"actor_rollout_ref.actor.fsdp_config.mixed_precision={options.dtype}",
            f"trainer.cpu_threads_per_worker={options.threads}",
            *overrides,
        ],
        "smollm2",
    )
    return config


@dataclass
class EngineMeter:
    """The engine as the loop sees it; adds up the seconds in which it has a request."""

    engine: RolloutEngine
    busy_s: float = 0.0
    _open: int = field(default=0, repr=False)
    _since: float = field(default=0.0, repr=False)

    async def generate(
        self, prompt_ids: Sequence[int], sampling: SamplingSettings, *, trajectory_id: str
    ) -> Generation:
        if self._open == 0:
            self._since = time.perf_counter()
        self._open += 1
        try:
            return await self.engine.generate(prompt_ids, sampling, trajectory_id=trajectory_id)
        finally:
            self._open -= 1
            if self._open == 0:
                self.busy_s += time.perf_counter() - self._since

    def release(self, trajectory_id: str) -> None:
        self.engine.release(trajectory_id)


class Session:
    """One engine and one event loop for several measurements, each with empty caches."""

    def __init__(self, config: PPOConfig, engine: RolloutEngine, loop: LoopThread) -> None:
        self.config = config
        self.engine = engine
        self._loop = loop
        model = load_causal_lm(config.actor_rollout_ref.model, make_plan(config).engine.dtype)
        self._weights = pack_weights(model.state_dict())
        self._version = 0

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._loop.run(coroutine)

    def forget(self) -> None:
        """Give the engine the same weights anew: its caches are of the old ones."""
        self._version += 1
        self.engine.load_weights(WeightUpdate(self._version, self._weights))


@contextmanager
def open_session(config: PPOConfig) -> Iterator[Session]:
    """The configured engine, started and holding the model's weights."""
    torch.set_num_threads(config.trainer.cpu_threads_per_worker)
    # vLLM computes in processes of its own, which inherit this
    os.environ["OMP_NUM_THREADS"] = str(config.trainer.cpu_threads_per_worker)
    engine = build_engine(config.actor_rollout_ref, make_plan(config).engine)
    try:
        engine.start()
        loop = LoopThread(name="benchmark")
        try:
            session = Session(config, engine, loop)
            session.forget()
            session.run(generate_all(engine, [WARM_UP_IDS] * 2, SamplingParams(max_tokens=8), "-"))
            yield session
        finally:
            loop.close()
    finally:
        engine.close()


async def generate_all(
    engine: RolloutEngine, prompts: Sequence[Sequence[int]], sampling: SamplingSettings, name: str
) -> list[Generation]:
    """All prompts at once, each as a trajectory of its own, which is released."""
    names = [f"{name}/{i}" for i in range(len(prompts))]
    try:
        return await asyncio.gather(
            *(
                engine.generate(prompt, sampling, trajectory_id=trajectory)
                for prompt, trajectory in zip(prompts, names, strict=True)
            )
        )
    finally:
        for trajectory in names:
            engine.release(trajectory)
