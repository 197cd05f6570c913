"""Batches that workers are still computing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDict

if TYPE_CHECKING:
    from verl.protocol.batch import DataProto


def concat_batches(parts: list[DataProto] | list[TensorDict]) -> DataProto | TensorDict:
    """All rows of several batches of one type."""
    first = parts[0]
    return torch.cat(parts, dim=0) if isinstance(first, TensorDict) else first.concat(parts)


@dataclass
class DataProtoFuture:
    """A batch that workers are still computing.

    It can be passed to another worker group before it is there: the driver moves references, and
    the worker that needs the rows waits for them. A plain method that waits for an async method of
    its own actor waits forever, because both share one event loop; make both async or both plain.

    Args:
        collect_fn: joins the workers' results into one batch.
        futures: references to the workers' results.
        dispatch_fn: picks the part of the joined batch that this future stands for.
    """

    collect_fn: Callable[[list], Any]
    futures: list
    dispatch_fn: Callable[[Any], Any] | None = None

    @staticmethod
    def concat(data: list) -> DataProtoFuture:
        """The future of all workers' rows in worker order."""
        return DataProtoFuture(collect_fn=concat_batches, futures=list(data))

    def chunk(self, chunks: int) -> list[DataProtoFuture]:
        """Futures of the `chunks` equal parts, without waiting for the whole."""

        def part_of(index: int) -> Callable[[Any], Any]:
            return lambda batch: batch.chunk(chunks)[index]

        return [
            DataProtoFuture(self.collect_fn, self.futures, dispatch_fn=part_of(index))
            for index in range(chunks)
        ]

    def get(self) -> Any:
        """Wait for the results and join them."""
        # Deferred: batches are used without Ray, too.
        import ray

        joined = self.collect_fn(ray.get(self.futures))
        return joined if self.dispatch_fn is None else self.dispatch_fn(joined)
