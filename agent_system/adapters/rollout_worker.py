"""The rollout worker: an engine, environment slots and the rollout loop in one process.

The trainer starts N of them as Ray actors. Nothing here calls Ray: methods are ordinary ones and a
trajectory stream is an ordinary generator.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from agent_system.adapters.setup import build_prompts, user_errors
from agent_system.config import PoolConfig
from agent_system.environments.pool import EnvPool, EnvPoolError
from agent_system.environments.registry import bind_env
from agent_system.multi_turn_rollout import TrajectoryCollector
from agent_system.types import Episode, SamplingParams, Trajectory
from verl.config.plan import RunPlan
from verl.config.root import PPOConfig
from verl.utils.errors import UserError
from verl.utils.logging import setup_logging
from verl.utils.loop_thread import LoopThread
from verl.utils.secrets import without_secrets
from verl.workers.model_loading import load_chat_template
from verl.workers.rollout.engines import build_engine
from verl.workers.rollout.supervised import EngineGaveUpError, SupervisedEngine
from verl.workers.weight_sync import WeightUpdate


class RolloutWorker:
    """Plays episodes with the weights it was last given.

    `close` ends the engine and every environment process. Should this process be killed instead,
    its environment processes notice and end by themselves.
    """

    def __init__(self, config: PPOConfig, plan: RunPlan, rank: int) -> None:
        """Worker `rank` of the plan's `rollout_workers`. Starts nothing yet."""
        if not 0 <= rank < plan.rollout_workers:
            raise ValueError(f"rank={rank} is not one of {plan.rollout_workers} rollout workers")
        self._config = config
        self._plan = plan
        self._name = f"rollout_{rank:03d}"
        self._run_dir = Path(config.trainer.default_local_dir)
        self._loop: LoopThread | None = None
        self._resources = ExitStack()

    def start(self, weights: WeightUpdate | None = None) -> None:
        """Returns when the engine and every environment slot is up.

        All logging of this process goes to the console and `rollout_<rank>.log` in the run folder.

        Args:
            weights: to begin with, in place of the model's own (of one that replaces another).

        Raises:
            UserError: a setting of the environment or the tokenizer is wrong;
                the environment does not start.
        """
        setup_logging(file=self._run_dir / f"{self._name}.log", worker=self._name)
        config, policy = self._config, self._config.actor_rollout_ref
        with ExitStack() as resources:
            with user_errors():
                # The environment processes boot while the engine loads the model.
                self._pool = self._open_pool()
                resources.callback(self._pool.close)
                self._collector = TrajectoryCollector(
                    self._pool,
                    build_prompts(config),
                    load_chat_template(policy.model, self._plan.chat_date),
                    config.env,
                    config.data.max_prompt_length,
                )
                self._engine = SupervisedEngine(
                    lambda: build_engine(policy, self._plan.engine),
                    request_timeout_s=policy.rollout.request_timeout_s,
                )
            resources.callback(self._engine.close)
            with self._engine_failures():
                self._engine.start()
            if weights is not None:
                self.update_weights(weights)
            self._loop = LoopThread(name=self._name)
            resources.callback(self._loop.close)
            with self._environment_failures():
                self._loop.run(_wait_for_slots(self._pool, config.env.pool.slots_per_worker))
            self._resources = resources.pop_all()

    def update_weights(self, update: WeightUpdate) -> None:
        """Sample from `update` from now on; its version is what the tokens will carry.

        Raises:
            UserError: the engine died again and again.
        """
        with self._engine_failures():
            self._engine.load_weights(update)

    def transfer(self, stage: str, payload: Any) -> bool:
        """One stage of an update that comes straight from the trainer's memory instead, through
        vLLM's weight transfer (`verl.workers.weight_sync.client`)."""
        with self._engine_failures():
            return self._engine.transfer(stage, payload)

    def score(self, rows: list[list[int]]) -> list[list[float]] | None:
        """Log-probs of fixed rows by the present weights, where the engine can (`ScoringEngine`).

        Raises:
            UserError: the engine died again and again.
        """
        with self._engine_failures():
            return self._engine.score(rows)

    def differing_weights(self) -> list[str] | None:
        """Which tensors the engine does not hold as they were sent, where it can tell
        (`ComparingEngine`)."""
        return self._engine.differing_weights()

    def sleep(self) -> None:
        """Give the engine's memory back until `update_weights`. Nothing may be played.

        Raises:
            UserError: the engine died again and again.
        """
        with self._engine_failures():
            self._engine.sleep()

    def load_ahead(self, episodes: list[Episode]) -> None:
        """Let environment slots load the tasks of episodes that are played later."""
        self._collector.load_ahead(episodes)

    def collect(
        self, episodes: list[Episode], sampling: SamplingParams, seed: int
    ) -> Iterator[Trajectory]:
        """Trajectories as they finish. See `TrajectoryCollector.collect`.

        Raises:
            UserError: the engine or the environment failed again and again.
            CancelledError: `cancel` was called.
        """
        assert self._loop is not None, "start comes first"
        stream = self._collector.collect(self._engine, episodes, sampling, seed)
        with self._engine_failures(), self._environment_failures():
            yield from self._loop.stream(stream)

    def cancel(self) -> None:
        """End the rollout that runs. From another thread: `collect` keeps its own busy."""
        if self._loop is not None:
            self._loop.cancel()

    def stats(self) -> dict[str, float]:
        """Counters since the start: `engine/*` (see `SupervisedEngine.stats`) and `env/*`."""
        pool = self._pool.stats()
        engine = {f"engine/{name}": value for name, value in self._engine.stats().items()}
        return engine | {
            "env/slots": pool.slots,
            "env/replacements": pool.replacements,
            "env/loaded_ahead": pool.loaded_ahead,
        }

    def close(self) -> None:
        """Cancel what runs, then end engine and environment processes. May be called again."""
        self._resources.close()

    @contextmanager
    def _engine_failures(self) -> Iterator[None]:
        """What the engine's supervisor could not mend, as a sentence for the user."""
        try:
            yield
        except EngineGaveUpError as error:
            raise UserError(
                f"the engine of {self._name} failed: {error}; see "
                f"{self._run_dir / self._name}.log and Ray's worker logs for more; if memory "
                "ran out, lower actor_rollout_ref.rollout.max_num_seqs, gpu_memory_utilization (on "
                "a GPU) or cpu_kv_cache_gb (on a CPU); then run the same command again, which "
                "resumes from the last checkpoint"
            ) from error

    @contextmanager
    def _environment_failures(self) -> Iterator[None]:
        """What the pool could not mend, as a sentence for the user."""
        try:
            yield
        except EnvPoolError as error:
            raise UserError(
                f"the environments of {self._name} failed: {error}; when that is mended, run the "
                "same command again, which resumes from the last checkpoint"
            ) from error

    def _open_pool(self) -> EnvPool:
        pool = self._pool_config()
        return EnvPool(
            bind_env(self._config.env), pool, without_secrets(os.environ, pool.passed_secrets)
        )

    def _pool_config(self) -> PoolConfig:
        """Every worker has a log folder of its own: slots are numbered from 0 in each."""
        pool = self._config.env.pool
        log_dir = Path(pool.log_dir or self._run_dir / "env_logs")
        return replace(pool, log_dir=str(log_dir / self._name))


async def _wait_for_slots(pool: EnvPool, count: int) -> None:
    """Returns when `count` slots are up."""
    async with AsyncExitStack() as stack:
        for _ in range(count):
            await stack.enter_async_context(pool.acquire())
