"""Episodes of known, uneven length: the engine samples every response, a script acts.

An untrained policy wanders until the turn limit, and then all episodes are equally long. So the
environment here plays ScienceWorld's own solution of a task, action by action, whatever the policy
says. Prompts, sampled tokens and environment steps are as real and as many as ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from agent_system.adapters.setup import build_prompts, load_tasks
from agent_system.environments.env_package.sciworld.gold import gold_paths
from agent_system.environments.pool import EnvPool
from agent_system.environments.registry import bind_env
from agent_system.interfaces import AsyncEnv
from agent_system.multi_turn_rollout import TrajectoryCollector
from agent_system.types import Episode, Observation, SamplingParams, StepResult, Task
from verl.config.root import PPOConfig
from verl.workers.model_loading import load_chat_template

Scripts = Mapping[str, Sequence[str]]  # task key -> actions


class ScriptedSlot:
    """Implements `AsyncEnv` on another one; the episode is over when its script is, never before.

    ScienceWorld's chance may end a task some actions earlier or later, but rollouts that are
    compared have to be equally long.
    """

    def __init__(self, env: AsyncEnv, scripts: Scripts) -> None:
        self._env = env
        self._scripts = scripts
        self._actions: list[str] = []

    async def reset(self, task: Task) -> tuple[Observation, dict[str, Any]]:
        self._actions = list(reversed(self._scripts[task.key]))
        return await self._env.reset(task)

    async def step(self, action: str) -> StepResult:
        result = await self._env.step(self._actions.pop())
        over = not self._actions
        info = {**result.info, "success": over and result.info["success"]}
        return replace(result, terminated=False, truncated=over, info=info)


class ReplayPool:
    """A pool whose slots play scripts."""

    def __init__(self, pool: EnvPool, scripts: Scripts) -> None:
        self._pool = pool
        self._scripts = scripts

    @asynccontextmanager
    async def acquire(self, task: Task | None = None) -> AsyncIterator[ScriptedSlot]:
        async with self._pool.acquire(task) as slot:
            yield ScriptedSlot(slot, self._scripts)

    def load_ahead(self, tasks: Sequence[Task]) -> None:
        self._pool.load_ahead(tasks)

    def describe_waiting(self, longer_than_s: float) -> list[str]:
        return self._pool.describe_waiting(longer_than_s)


@dataclass(frozen=True)
class Games:
    """Episodes of one task type each, and the slots that play their scripts."""

    episodes: list[Episode]
    pool: ReplayPool

    async def warm_up(self) -> None:
        """Every slot starts and plays a reset, so that no measured rollout waits for that."""
        async with AsyncExitStack() as held:
            slots = [await held.enter_async_context(self.pool.acquire()) for _ in self.episodes]
            pairs = zip(slots, self.episodes, strict=True)
            await asyncio.gather(*(slot.reset(episode.task) for slot, episode in pairs))

    def collector(self, config: PPOConfig) -> TrajectoryCollector:
        """The trainer's loop on these slots."""
        return TrajectoryCollector(
            self.pool,
            build_prompts(config),
            load_chat_template(config.actor_rollout_ref.model),
            config.env,
            config.data.max_prompt_length,
        )


@contextmanager
def open_games(config: PPOConfig) -> Iterator[Games]:
    """The first task of each type in `env.train`; scripts end after `env.max_steps` turns."""
    first = {task.name: task for task in reversed(load_tasks(config, "train"))}
    tasks = [first[name] for name in config.env.train.tasks]
    pool_config = replace(config.env.pool, slots_per_worker=len(tasks), log_dir=None)
    pool = EnvPool(bind_env(config.env), pool_config)
    try:
        solutions = gold_paths(tasks, config.env.options["simplification"])
        scripts = {key: actions[: config.env.max_steps] for key, actions in solutions.items()}
        episodes = [Episode(task, task.name, f"{task.name}/0") for task in tasks]
        yield Games(episodes, ReplayPool(pool, scripts))
    finally:
        pool.close()


def sampling(config: PPOConfig) -> SamplingParams:
    """As in training, but a response ends only at the end token or its limit."""
    return SamplingParams(
        temperature=config.actor_rollout_ref.rollout.temperature,
        max_tokens=config.data.max_response_length,
    )


def sciworld_overrides(context: str, types: Sequence[str], turns: int, tokens: int) -> list[str]:
    """ScienceWorld as published runs play it, `types` of tasks, responses of `tokens` at most."""
    return [
        "env=sciworld",
        "env.options={simplification: easy, jvm_heap_mb: 224}",
        "env.action_format.stop=[]",
        f"env.train.tasks=[{','.join(types)}]",
        f"env.context.kind={context}",
        f"env.max_steps={turns}",
        f"data.max_response_length={tokens}",
    ]
