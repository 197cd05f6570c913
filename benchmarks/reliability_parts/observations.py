"""What a hostile environment says, through a real environment process, the chat template, the
rollouts' JSON and the log: how many episodes are lost to it."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import time
from collections import Counter

import numpy as np
from rollout_parts.report import show

from agent_system.config import PoolConfig
from agent_system.environments.pool import EnvPool, EnvWorkerError
from agent_system.environments.registry import EnvPackage
from agent_system.types import Observation, Task
from reliability_parts.hostile_env import HostileOptions
from verl.config.model import ModelConfig
from verl.utils.logging import SafeFormatter
from verl.workers.chat_template import ChatTemplate
from verl.workers.model_loading import load_chat_template

STEPS = 100  # of an episode
RESPONSE = np.empty(0, np.int32)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--observations", type=int, default=100_000)


def run(options: argparse.Namespace) -> None:
    start = time.perf_counter()
    counted = measure(options.observations // STEPS)
    seconds = time.perf_counter() - start
    header = ("observations", "cleaned or cut", "episodes", "episodes lost", "seconds")
    row = [counted[name] for name in ("observations", "cleaned", "episodes", "lost")]
    show(header, [[*row, seconds]])


def measure(episodes: int, options: HostileOptions | None = None) -> Counter[str]:
    """Counts of `observations`, `cleaned`, `episodes` and `lost`.

    Raises:
        AssertionError: a text that was let in obeys a terminal or holds a marker as a token.
    """
    package = EnvPackage(
        "hostile",
        "reliability_parts.hostile_env:HostileEnv",
        HostileOptions,
        prompts=lambda options, action_format: None,
        task_sets=lambda options, asked: [],
        check=lambda: None,
    )
    values = {} if options is None else vars(options)
    pool = EnvPool(package.bind(values), PoolConfig(slots_per_worker=1, max_text_chars=10_000))
    try:
        return asyncio.run(_play(pool, episodes))
    finally:
        pool.close()


async def _play(pool: EnvPool, episodes: int) -> Counter[str]:
    chat = load_chat_template(ModelConfig(path="small"))
    counted: Counter[str] = Counter()
    for seed in range(episodes):
        counted["episodes"] += 1
        try:
            async with pool.acquire() as env:
                observation, _ = await env.reset(Task("hostile", {}, seed))
                for _ in range(STEPS):
                    _read(chat, observation)
                    counted["observations"] += 1
                    counted["cleaned"] += observation.cleaned
                    observation = (await env.step("look")).observation
        except EnvWorkerError:
            counted["lost"] += 1
    return counted


def _read(chat: ChatTemplate, observation: Observation) -> None:
    """What the loop, the rollouts' file and the log do with it."""
    ids = chat.continuation(RESPONSE, observation.text)
    assert (ids == chat.end_id).sum() == (chat.continuation(RESPONSE, "-") == chat.end_id).sum()
    json.dumps({"observation": observation.text}, ensure_ascii=False).encode("utf-8")
    record = logging.LogRecord("env", logging.INFO, "", 0, observation.text, None, None)
    assert all(line.isprintable() for line in SafeFormatter().format(record).split("\n"))
