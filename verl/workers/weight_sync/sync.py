"""How the driver brings the trainer's weights to the rollout engines: one interface, two ways."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import ray

from verl.config.plan import RunPlan
from verl.config.root import PPOConfig
from verl.single_controller.ray.base import RayWorkerGroup
from verl.utils.errors import UserError
from verl.utils.patience import Patience
from verl.workers.rollout.rollout_workers import RolloutWorkers
from verl.workers.weight_sync.client import Receivers, RolloutClient


class WeightSync(Protocol):
    """No weights ever pass through the driver: it only says when."""

    def sync(self, version: int) -> None:
        """Returns when all engines sample from the trainer's weights of now, as `version`."""
        ...


@dataclass(frozen=True)
class ObjectStoreSync:
    """Through Ray's object store: rank 0 puts the weights (with LoRA and vLLM only the adapters)
    there once, and each engine reads them from the shared memory of its node."""

    actor: RayWorkerGroup
    rollouts: RolloutWorkers

    def sync(self, version: int) -> None:
        of_ranks = self.actor.publish_weights(version)
        self.rollouts.update_weights(of_ranks[0][0])


@dataclass(frozen=True)
class TransferSync:
    """Through vLLM's weight transfer, from GPU memory to GPU memory.

    An engine that is new (the run begins, or it was restarted) is in no group yet: then all of
    them connect again, because a group of ranks cannot be joined later. One that dies between two
    transfers gets its weights through the object store, for which the trainers have to be idle.
    """

    actor: RayWorkerGroup
    rollouts: RolloutWorkers
    gpus_each: int
    patience: Patience
    trainers_wait: bool  # for the rollout, instead of training meanwhile

    def sync(self, version: int) -> None:
        receivers = Receivers(self.rollouts.workers, self.gpus_each, self.patience)
        if not RolloutClient(receivers).all_connected():
            self.actor.connect_rollouts(receivers)
        self.actor.send_weights(version)
        self.rollouts.ask_for_weights(lambda: self._publish(version))

    def _publish(self, version: int) -> ray.ObjectRef:
        """Raises UserError where the trainers' weights are not those of `version` any more."""
        if not self.trainers_wait:
            raise UserError(
                "an engine died while the trainer was changing the weights that it had; run the "
                "same command again, which resumes from the last checkpoint; with "
                "actor_rollout_ref.rollout.weight_sync=object_store an engine is restarted"
            )
        return self.actor.publish_weights(version)[0][0]


def build_weight_sync(
    config: PPOConfig, plan: RunPlan, actor: RayWorkerGroup, rollouts: RolloutWorkers
) -> WeightSync:
    """The way that the run's plan names."""
    if plan.engine.transport == "object_store":
        return ObjectStoreSync(actor, rollouts)
    return TransferSync(
        actor,
        rollouts,
        gpus_each=config.actor_rollout_ref.rollout.tensor_model_parallel_size,
        patience=Patience.of(config.trainer),
        trainers_wait=config.trainer.async_steps == 0,
    )
