"""The rollout workers of a cluster, as the driver sees them: episodes in, trajectories out."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle

from verl.config.plan import RunPlan
from verl.config.root import PPOConfig
from verl.utils.patience import Patience, actor_class
from verl.workers.interfaces import Episode, RolloutWorker, Trajectory
from verl.workers.rollout.accounting import engine_metrics
from verl.workers.rollout.base import SamplingSettings
from verl.workers.rollout.worker_handle import CONTROL, WORKER_LOST, WorkerHandle

CLOSE_S = 10.0  # what a worker has to close by itself

# What is logged here: name, unit, how the values of a step become one, meaning.
METRICS = (("rollout/worker_restarts", "workers", "sum", "that died and were started anew"),)


@dataclass(frozen=True)
class RolloutPlacement:
    """Where one rollout worker runs and what it asks of Ray there."""

    strategy: Any  # a Ray scheduling strategy
    num_cpus: float
    num_gpus: float
    env_vars: dict[str, str] = field(default_factory=dict)  # of this worker alone


class RolloutWorkers:
    """N Ray actors, each an engine with its environment slots."""

    def __init__(
        self,
        worker_class: type[RolloutWorker],
        config: PPOConfig,
        plan: RunPlan,
        placements: Sequence[RolloutPlacement],
        env_vars: dict[str, str],
    ) -> None:
        """One worker a placement; they boot in the background (`wait_until_started`).

        Raises:
            TypeError: the class has coroutine methods.
        """
        _check_is_no_asyncio_actor(worker_class)
        # A worker of an existing cluster may stand in another folder than this process.
        run_dir = Path(config.trainer.default_local_dir).absolute()
        config = replace(config, trainer=replace(config.trainer, default_local_dir=str(run_dir)))
        self._patience = Patience.of(config.trainer)
        self._handles = []
        for rank, placement in enumerate(placements):
            options = actor_class(worker_class, concurrency_groups={CONTROL: 1}).options(
                num_cpus=placement.num_cpus,
                num_gpus=placement.num_gpus,
                scheduling_strategy=placement.strategy,
                runtime_env={"env_vars": env_vars | placement.env_vars},
            )
            make_actor = partial(options.remote, config, plan, rank)
            self._handles.append(
                WorkerHandle(
                    f"rollout worker {rank}",
                    make_actor,
                    advice=what_to_do(run_dir / f"rollout_{rank:03d}.log"),
                    patience=self._patience,
                )
            )
        self._collect_seconds = 0.0  # since the last `metrics`
        self._restarts_told = 0  # those that `metrics` has reported

    def __len__(self) -> int:
        return len(self._handles)

    @property
    def workers(self) -> list[ActorHandle]:
        """The actors, in the order of their ranks. One that dies is replaced by another."""
        return [handle.actor for handle in self._handles]

    def wait_until_started(self) -> None:
        """Returns when every engine and every environment slot is up."""
        for handle in self._handles:
            handle.wait_until_started()

    def update_weights(self, update: ray.ObjectRef) -> None:
        """Every engine samples from `update`, a `WeightUpdate`, from now on. An engine that sleeps
        wakes up.

        Raises:
            UserError: an engine or a worker died twice in a row.
        """
        for handle in self._handles:
            handle.keep_weights(update)
        self._on_all("update_weights", update)

    def ask_for_weights(self, fetch: Callable[[], ray.ObjectRef]) -> None:
        """The engines have got weights another way: a worker that dies is given those of `fetch`,
        which returns the reference of a `WeightUpdate`."""
        for handle in self._handles:
            handle.ask_for_weights(fetch)

    def begin_to_score(self, rows: list[list[int]]) -> Callable[[], list[Any]]:
        """Every engine computes the log-probs of `rows` (`ScoringEngine`). What it returns waits
        for them: of each engine a list, or None of one that cannot.

        Raises:
            UserError: while waiting, as `update_weights`.
        """
        return self._begin("score", rows)

    def differing_weights(self) -> list[list[str] | None]:
        """Of each engine, the tensors that it does not hold as they were sent; None of one that
        cannot tell."""
        return self._on_all("differing_weights")

    def sleep(self) -> None:
        """Engines give their memory back until `update_weights`, where they can.

        Raises:
            UserError: as `update_weights`.
        """
        self._on_all("sleep")

    def load_ahead(self, episodes: Sequence[Episode]) -> None:
        """Environments begin to load the tasks of `episodes`, which `collect` is given next.

        Raises:
            UserError: as `update_weights`.
        """
        asked = [
            (handle, share, handle.call("load_ahead", share))
            for handle, share in zip(self._handles, self._shares(episodes), strict=True)
        ]
        for handle, share, answer in asked:
            handle.result(answer, "load_ahead", share)

    def collect(
        self,
        episodes: Sequence[Episode],
        sampling: SamplingSettings,
        seed: int,
        on_trajectory: Callable[[Trajectory], object] = lambda trajectory: None,
    ) -> list[Trajectory]:
        """Play all episodes; returns the trajectories in the order of `episodes`.

        When a worker dies, its successor plays the episodes that it had not delivered from their
        start. Their tokens do not depend on where and when they are sampled. An error, also
        Ctrl-C, ends the rollouts of all workers.

        Raises:
            UserError: an engine or a worker died twice in a row.
        """
        began = time.perf_counter()
        finished: dict[str, Trajectory] = {}
        try:
            with closing(self._play(episodes, sampling, seed)) as trajectories:
                for trajectory in trajectories:
                    finished[trajectory.episode.traj_uid] = trajectory
                    on_trajectory(trajectory)
        finally:
            self._collect_seconds += time.perf_counter() - began
        return [finished[episode.traj_uid] for episode in episodes if episode.traj_uid in finished]

    def metrics(self) -> dict[str, float]:
        """`rollout/*` of everything collected since the last call (see `engine_metrics`), and
        `rollout/worker_restarts`.

        What a worker that died had counted since then is lost with it.
        """
        seconds, self._collect_seconds = self._collect_seconds, 0.0
        counters = self.stats()
        grown = [h.growth(c) for h, c in zip(self._handles, counters, strict=True)]
        restarts = sum(handle.restarts for handle in self._handles)
        told, self._restarts_told = self._restarts_told, restarts
        return {
            **engine_metrics(grown, seconds),
            "rollout/worker_restarts": float(restarts - told),
        }

    def stats(self) -> list[dict[str, float]]:
        """The counters of each worker since its start."""
        return self._on_all("stats")

    def close(self) -> None:
        """Close environments and engines; a worker that does not answer is killed."""
        closing = [handle.begin_to_close() for handle in self._handles]
        ray.wait(closing, num_returns=len(closing), timeout=CLOSE_S)
        for handle in self._handles:
            handle.kill()

    def _on_all(self, method: str, *args: Any) -> list[Any]:
        return self._begin(method, *args)()

    def _begin(self, method: str, *args: Any) -> Callable[[], list[Any]]:
        answers = [handle.call(method, *args) for handle in self._handles]
        return lambda: [
            handle.result(answer, method, *args)
            for handle, answer in zip(self._handles, answers, strict=True)
        ]

    def _play(
        self, episodes: Sequence[Episode], sampling: SamplingSettings, seed: int
    ) -> Generator[Trajectory]:
        """Trajectories as they finish, from whichever worker has one."""
        shares = zip(self._handles, self._shares(episodes), strict=True)
        left = {handle: {e.traj_uid: e for e in share} for handle, share in shares if share}

        def begin(handle: WorkerHandle) -> ray.ObjectRefGenerator:
            return handle.stream(list(left[handle].values()), sampling, seed)

        # what is waited for: streams of trajectories, and successors that start
        awaited = {begin(handle): handle for handle in left}
        try:
            while awaited:
                peers = {source: handle.peer(source) for source, handle in awaited.items()}
                source = self._patience.first(peers, "episodes")
                handle = awaited[source]
                try:
                    ref = source if source is handle.ready else next(source)
                    result: Any = ray.get(ref)
                except StopIteration:
                    del awaited[source]
                    continue
                except WORKER_LOST as error:
                    del awaited[source]
                    awaited[handle.replace(error)] = handle
                    continue
                if source is handle.ready:
                    del awaited[source]
                    awaited[begin(handle)] = handle
                    continue
                handle.note_delivery()
                del left[handle][result.episode.traj_uid]
                yield result
        finally:  # after an error some are still open
            for source, handle in awaited.items():
                handle.cancel(source)

    def _shares(self, episodes: Sequence[Episode]) -> list[list[Episode]]:
        """Deal whole groups to the workers in turn, so that a group shares its cached prefix."""
        groups: dict[str, list[Episode]] = {}
        for episode in episodes:
            groups.setdefault(episode.uid, []).append(episode)
        shares: list[list[Episode]] = [[] for _ in self._handles]
        for group in groups.values():
            min(shares, key=len).extend(group)
        return shares


def _check_is_no_asyncio_actor(worker_class: type[RolloutWorker]) -> None:
    """In Ray's asyncio actors a call that waits for its turn blocks the thread that takes calls, so
    that a `cancel` behind it never arrives."""
    coroutines = [
        name
        for name, method in inspect.getmembers(worker_class)
        if inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method)
    ]
    if coroutines:
        raise TypeError(
            f"{worker_class.__name__} has coroutine methods ({', '.join(coroutines)}), with which "
            "Ray cannot cancel a rollout; make them functions of the module"
        )


def what_to_do(log: Path) -> str:
    """About a worker that dies again and again."""
    return (
        f"see {log} and the system's log for the reason; if the machine ran out of memory, lower "
        "env.pool.slots_per_worker, actor_rollout_ref.rollout.workers or "
        "actor_rollout_ref.rollout.max_num_seqs; then run the same command again, which resumes "
        "from the last checkpoint"
    )
