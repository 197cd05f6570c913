"""How the driver brings the trainer's weights to the rollout engines: one interface, two ways."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from verl.config.actor import ActorRolloutRefConfig
from verl.config.machine import resolve_engine
from verl.single_controller.ray.base import RayWorkerGroup
from verl.workers.rollout.group import RolloutGroup
from verl.workers.weight_sync.client import Receivers, RolloutClient
from verl.workers.weight_sync.transport import Transport, resolve_transport


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
    rollouts: RolloutGroup

    def sync(self, version: int) -> None:
        of_ranks = self.actor.publish_weights(version)
        self.rollouts.update_weights(of_ranks[0][0])


@dataclass(frozen=True)
class TransferSync:
    """Through vLLM's weight transfer, from GPU memory to GPU memory.

    An engine that is new (the run begins, or it was restarted) is in no group yet: then all of
    them connect again, because a group of ranks cannot be joined later.
    """

    transport: Transport
    actor: RayWorkerGroup
    rollouts: RolloutGroup
    gpus_each: int

    def sync(self, version: int) -> None:
        receivers = Receivers(self.rollouts.workers, self.gpus_each)
        if not RolloutClient(receivers).all_connected():
            self.actor.connect_rollouts(self.transport, receivers)
        self.actor.send_weights(version)


def build_weight_sync(
    config: ActorRolloutRefConfig, device: str, actor: RayWorkerGroup, rollouts: RolloutGroup
) -> WeightSync:
    """The way that `rollout.weight_sync` names. Raises UserError when it is impossible here."""
    rollout = config.rollout
    engine = resolve_engine(rollout.name)
    transport = resolve_transport(rollout, device, engine, config.model.lora_rank > 0)
    if transport == "object_store":
        return ObjectStoreSync(actor, rollouts)
    return TransferSync(transport, actor, rollouts, rollout.tensor_model_parallel_size)
