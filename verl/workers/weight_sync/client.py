"""The rollout workers as vLLM's trainer side calls them: one stage of an update, on all at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ray.actor import ActorHandle

from verl.utils.patience import Patience, Peer


@dataclass(frozen=True)
class Receivers:
    """The rollout workers and the GPUs that the engine of each spans."""

    workers: Sequence[ActorHandle]
    gpus_each: int
    patience: Patience = field(default_factory=Patience)

    @property
    def gpus(self) -> int:
        return len(self.workers) * self.gpus_each


class RolloutClient:
    """Drives `RolloutWorker.transfer` on every worker and waits for all of them.

    Structurally vLLM's `VLLMWeightSyncClient`. An error of any engine is raised here. `version` is
    what the engines are told that they hold when an update is finished.
    """

    def __init__(self, receivers: Receivers) -> None:
        self._receivers = receivers
        self.version = 0

    def all_connected(self) -> bool:
        """Whether every engine is connected; one that was started anew is not."""
        return all(self._call("look", [None for _ in self._indices()]))

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._call("connect", [self._own_info(init_info, i) for i in self._indices()])

    def start_weight_update(self) -> None:
        self._call("start", [None for _ in self._indices()])

    def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        self._call("update", [update_info for _ in self._indices()])

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """`weight_version` is vLLM's and unused: the versions here are `self.version`."""
        self._call("finish", [self.version for _ in self._indices()])

    def _indices(self) -> range:
        return range(len(self._receivers.workers))

    def _own_info(self, init_info: dict[str, Any], index: int) -> dict[str, Any]:
        """vLLM numbers the ranks of one engine from `rank_offset`; each engine here is one of its
        own, so its ranks follow those of the engine before it."""
        if "rank_offset" not in init_info:
            return init_info
        before = index * self._receivers.gpus_each
        return {**init_info, "rank_offset": init_info["rank_offset"] + before}

    def _call(self, stage: str, payloads: Sequence[Any]) -> list[bool]:
        answers = {
            worker.transfer.remote(stage, payload): Peer(f"rollout worker {index}", worker)
            for index, (worker, payload) in enumerate(
                zip(self._receivers.workers, payloads, strict=True)
            )
        }
        return self._receivers.patience.results(answers, stage)
