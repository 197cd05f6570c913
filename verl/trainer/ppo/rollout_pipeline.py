"""Where a training step's trajectories come from: played when asked for, or one step ahead."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from verl.config.root import PPOConfig
from verl.utils.logging import progress
from verl.workers.interfaces import AgentWorld, Episode, Trajectory
from verl.workers.rollout.rollout_workers import RolloutWorkers

T = TypeVar("T")

# What is logged here: name, unit, how the values of a step become one, meaning.
METRICS = (("timing_s/rollout", "s", "-", "that the rollout took, also while the trainer trained"),)


@dataclass(frozen=True)
class Rollout:
    """One step's trajectories. `metrics`: of the engines while they played, and the seconds."""

    trajectories: list[Trajectory]
    metrics: dict[str, float]


@dataclass(frozen=True)
class _Pending:
    episodes: Sequence[Episode]
    world_before: dict[str, Any]  # the world's state before the tasks were drawn
    rollout: Future[Rollout] | None = None  # once it is being played


class RolloutPipeline:
    """Hands out the rollouts of a run, one a step.

    Without `start`, `take` plays the tasks there and then; after `load_ahead` the environments have
    them loaded. After `start`, a thread plays them while the caller does other work, and `take`
    waits for what is left. The weights are those that the engines have when playing begins; a
    started rollout has the engines to itself until `wait` or `take` returns.

    A rollout has the same tasks and the same seed either way, so that only the weights differ. A
    checkpoint (`world_state`) knows nothing of a rollout that nobody has taken: a resumed run plays
    its tasks again, with the restored weights, and is on-policy in its first step.
    """

    def __init__(self, config: PPOConfig, world: AgentWorld, rollouts: RolloutWorkers) -> None:
        self._config = config
        self._world = world
        self._rollouts = rollouts
        self._pending: _Pending | None = None

    def load_ahead(self) -> None:
        """Let the environments load the tasks of the next rollout.

        Raises:
            RuntimeError: the one before has not been taken.
        """
        self._pending = self._draw()
        self._rollouts.load_ahead(self._pending.episodes)

    def start(self, step: int) -> None:
        """Begin the rollout of `step` in the background.

        Raises:
            RuntimeError: the one before has not been taken.
        """
        drawn = self._draw()
        rollout = run_in_thread(lambda: self._play(drawn.episodes, step), f"rollout_{step}")
        self._pending = replace(drawn, rollout=rollout)

    def take(self, step: int) -> Rollout:
        """The rollout of `step`. An error of the background reaches the caller here."""
        # pending until it is played: one that is interrupted counts for nothing in a checkpoint
        self._pending = pending = self._pending or self._draw()
        if pending.rollout is None:
            rollout = self._play(pending.episodes, step)
        else:
            rollout = pending.rollout.result()
        self._pending = None
        return rollout

    def wait(self) -> None:
        """Returns when the engines are idle; the trajectories are kept. Raises as `take` does."""
        if self._pending is not None and self._pending.rollout is not None:
            self._pending.rollout.result()

    @property
    def is_started(self) -> bool:
        """True between `start` and `take`."""
        return self._pending is not None and self._pending.rollout is not None

    def world_state(self) -> dict[str, Any]:
        """The world's state for a checkpoint: all tasks drawn, but for those nobody trained on."""
        return self._world.state_dict() if self._pending is None else self._pending.world_before

    def _draw(self) -> _Pending:
        if self._pending is not None:
            raise RuntimeError("a rollout is pending already; take it before the next is drawn")
        state, data = self._world.state_dict(), self._config.data
        episodes = self._world.train_episodes(data.train_batch_size, self._config.env.rollout.n)
        return _Pending(episodes, state)

    def _play(self, episodes: Sequence[Episode], step: int) -> Rollout:
        """Trajectories lost to a broken environment are dropped whole."""
        seed = self._config.trainer.seed * 1_000_003 + step
        start = time.perf_counter()
        with progress(total=len(episodes), description="episodes") as bar:
            trajectories = self._rollouts.collect(
                episodes, self._world.sampling("train"), seed, lambda _: bar.update()
            )
        seconds = time.perf_counter() - start
        return Rollout(trajectories, {**self._rollouts.metrics(), "timing_s/rollout": seconds})


def run_in_thread(work: Callable[[], T], name: str) -> Future[T]:
    """`work()` in a thread of its own, which does not keep the process alive."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # whatever it is, it belongs to the one who waits
            future.set_exception(error)

    # not an executor: Python joins its threads at exit, also one whose workers have gone
    threading.Thread(target=run, name=name, daemon=True).start()
    return future
