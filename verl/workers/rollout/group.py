"""The rollout workers of a cluster, as the driver sees them: episodes in, trajectories out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle

from verl.config.root import PPOConfig


@dataclass(frozen=True)
class RolloutPlacement:
    """Where one rollout worker runs and what it asks of Ray there."""

    strategy: Any  # a Ray scheduling strategy
    num_cpus: float
    num_gpus: float
    env_vars: dict[str, str] = field(default_factory=dict)  # of this worker alone


class RolloutGroup:
    """N Ray actors, each an engine with its environment slots."""

    def __init__(
        self,
        worker_class: type,
        config: PPOConfig,
        device: str,
        placements: Sequence[RolloutPlacement],
        env_vars: dict[str, str],
    ) -> None:
        """One worker a placement; they boot in the background (`wait_until_started`)."""
        # A worker of an existing cluster may stand in another folder than this process.
        run_dir = Path(config.trainer.default_local_dir).absolute()
        config = replace(config, trainer=replace(config.trainer, default_local_dir=str(run_dir)))
        self._workers = [
            ray.remote(worker_class)
            .options(
                num_cpus=placement.num_cpus,
                num_gpus=placement.num_gpus,
                scheduling_strategy=placement.strategy,
                runtime_env={"env_vars": env_vars | placement.env_vars},
            )
            .remote(config, rank, len(placements), device)
            for rank, placement in enumerate(placements)
        ]
        self._starting = [worker.start.remote() for worker in self._workers]

    def __len__(self) -> int:
        return len(self._workers)

    @property
    def workers(self) -> list[ActorHandle]:
        """The actors, in the order of their ranks."""
        return self._workers

    def wait_until_started(self) -> None:
        """Returns when every engine and every environment slot is up."""
        ray.get(self._starting)

    def update_weights(self, update: ray.ObjectRef) -> None:
        """Every engine samples from `update`, a `WeightUpdate`, from now on."""
        ray.get([worker.update_weights.remote(update) for worker in self._workers])

    def collect(
        self,
        episodes: Sequence[Any],
        sampling: Any,
        seed: int,
        on_trajectory: Callable[[Any], None] = lambda trajectory: None,
    ) -> list[Any]:
        """Play all episodes; returns the trajectories in the order of `episodes`."""
        streams = [
            worker.collect.options(num_returns="streaming").remote(share, sampling, seed)
            for worker, share in zip(self._workers, self._shares(episodes), strict=True)
            if share
        ]
        finished = {}
        for trajectory in self._drain(streams):
            finished[trajectory.episode.traj_uid] = trajectory
            on_trajectory(trajectory)
        return [finished[episode.traj_uid] for episode in episodes if episode.traj_uid in finished]

    def stats(self) -> list[dict[str, float]]:
        return ray.get([worker.stats.remote() for worker in self._workers])

    def close(self) -> None:
        """Close environments and engines; a worker that does not answer is killed."""
        closing = [worker.close.remote() for worker in self._workers]
        ray.wait(closing, num_returns=len(closing), timeout=30)
        for worker in self._workers:
            ray.kill(worker)

    def _shares(self, episodes: Sequence[Any]) -> list[list[Any]]:
        """Deal whole groups to the workers in turn, so that a group shares its cached prefix."""
        groups: dict[str, list[Any]] = {}
        for episode in episodes:
            groups.setdefault(episode.uid, []).append(episode)
        shares: list[list[Any]] = [[] for _ in self._workers]
        for group in groups.values():
            min(shares, key=len).extend(group)
        return shares

    def _drain(self, streams: list[Any]) -> Iterator[Any]:
        """Trajectories as they finish, from whichever worker has one."""
        open_streams = list(streams)
        while open_streams:
            (stream,), _ = ray.wait(open_streams, num_returns=1)
            try:
                yield ray.get(next(stream))
            except StopIteration:
                open_streams.remove(stream)
