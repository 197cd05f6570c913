"""The rollout loop: many episodes at once, each at its own pace.

Every episode waits for a free environment slot, plays until its end and hands the slot on. No
episode waits for another one, and a finished one generates nothing more.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from agent_system.config import EnvConfig
from agent_system.environments.pool import EnvWorkerError
from agent_system.interfaces import AsyncEnv, Chat, Policy, PromptBuilder
from agent_system.multi_turn_rollout.conversation import make_context
from agent_system.multi_turn_rollout.episode import EpisodePlayer
from agent_system.multi_turn_rollout.progress import ProgressWatch
from agent_system.rewards import EpisodeRewardManager
from agent_system.types import Episode, SamplingParams, Task, Trajectory

logger = logging.getLogger(__name__)

# An episode whose environment died is played once more from the start, in a fresh slot.
ATTEMPTS = 2


class Pool(Protocol):
    """What the loop needs of `agent_system.environments.pool.EnvPool`."""

    def acquire(self, task: Task | None = None) -> AbstractAsyncContextManager[AsyncEnv]: ...

    def load_ahead(self, tasks: Sequence[Task]) -> None: ...

    def describe_waiting(self, longer_than_s: float) -> list[str]: ...


class TrajectoryCollector:
    """Plays episodes with a policy and hands out trajectories as they finish.

    The number of episodes in flight is the number of slots of `pool`.
    """

    def __init__(
        self,
        pool: Pool,
        prompts: PromptBuilder,
        chat: Chat,
        config: EnvConfig,
        max_prompt_length: int,
    ) -> None:
        """`max_prompt_length`: tokens; a prompt that cannot be made to fit ends its episode.

        Raises:
            ValueError: a history that has no effect.
        """
        context = make_context(config.context, chat, prompts, max_prompt_length)
        rewards = EpisodeRewardManager(config.reward)
        self._player = EpisodePlayer(chat, context, prompts, rewards, config.max_steps)
        self._pool = pool
        self._stall_warning_s = config.pool.stall_warning_s

    def load_ahead(self, episodes: Sequence[Episode]) -> None:
        """Let the slots begin to load the tasks that `collect` will start these episodes with."""
        self._pool.load_ahead([episode.task for episode in starting_order(episodes)])

    async def collect(
        self, policy: Policy, episodes: Sequence[Episode], sampling: SamplingParams, seed: int
    ) -> AsyncGenerator[Trajectory, None]:
        """Yield every episode's trajectory as it finishes.

        The tokens do not depend on the number of slots or on the order of events: each request has
        a seed derived from `seed`, the task, the episode's `traj_uid` and the turn
        (`sampling.seed` is not used). A trajectory whose environment failed twice has the reason
        "env_error" and no turns.

        Raises:
            ValueError: members of a group differ in their task, or a traj_uid occurs twice.
            EnvPoolError: the environment fails again and again.
        """
        check_episodes(episodes)
        watch = ProgressWatch(self._stall_warning_s, self._pool.describe_waiting)
        async with watch.running():
            tasks = [
                asyncio.create_task(self._play(policy, episode, sampling, seed, watch))
                for episode in starting_order(episodes)
            ]
            try:
                for finished in asyncio.as_completed(tasks):
                    yield await finished
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def collect_all(
        self, policy: Policy, episodes: Sequence[Episode], sampling: SamplingParams, seed: int
    ) -> list[Trajectory]:
        """`collect`, gathered in the order of `episodes`."""
        by_uid = {
            trajectory.episode.traj_uid: trajectory
            async for trajectory in self.collect(policy, episodes, sampling, seed)
        }
        return [by_uid[episode.traj_uid] for episode in episodes]

    async def _play(
        self,
        policy: Policy,
        episode: Episode,
        sampling: SamplingParams,
        seed: int,
        watch: ProgressWatch,
    ) -> Trajectory:
        """Play one episode; if its environment fails, once more; else give it up as a whole."""
        errors = []
        for _ in range(ATTEMPTS):
            try:
                async with self._pool.acquire(episode.task) as env:
                    return await self._player.play(episode, env, policy, sampling, seed, watch)
            except EnvWorkerError as error:
                logger.warning("episode %s lost its environment: %s", episode.traj_uid, error)
                errors.append(str(error))
        return Trajectory(
            episode=episode,
            turns=[],
            reason="env_error",
            success=False,
            score=0.0,
            episode_reward=0.0,
            info={"lenient_success": False, "errors": errors},
        )


def check_episodes(episodes: Sequence[Episode]) -> None:
    """Groups are compared, so their members play one task. Raises ValueError otherwise."""
    task_keys: dict[str, str] = {}
    for episode in episodes:
        key = task_keys.setdefault(episode.uid, episode.task.key)
        if key != episode.task.key:
            raise ValueError(
                f"group '{episode.uid}' mixes the tasks {key} and {episode.task.key}; "
                "give all episodes of one uid the same task, variation and seed"
            )
    duplicate, count = (
        Counter(e.traj_uid for e in episodes).most_common(1)[0] if episodes else ("", 0)
    )
    if count > 1:
        raise ValueError(
            f"traj_uid '{duplicate}' occurs {count} times, but equal ones would sample the same "
            "tokens; give every episode its own"
        )


def starting_order(episodes: Sequence[Episode]) -> list[Episode]:
    """Groups stay together (their slots are in the same task); task types take turns.

    Types differ in length: in turns, the slow ones neither pile up at the end nor run all at once.
    """
    groups: dict[str, list[Episode]] = {}
    for episode in episodes:
        groups.setdefault(episode.uid, []).append(episode)
    seen: Counter[str] = Counter()
    ranked = []
    for group in groups.values():
        name = group[0].task.name
        ranked.append((seen[name], group))
        seen[name] += 1
    ranked.sort(key=lambda entry: entry[0])
    return [episode for _, group in ranked for episode in group]
