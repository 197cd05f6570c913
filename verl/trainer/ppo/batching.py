"""From one rollout's rows to mini-batches that every rank can share.

R rows, T response positions. Padding rows make a batch divisible by the number of ranks; their
response mask is zero, so they add nothing to any loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from verl.algorithms.aggregation import loss_normalizers, trajectory_token_weights
from verl.algorithms.entropy_control import StepContext
from verl.config.actor import ActorConfig
from verl.config.critic import CriticConfig
from verl.config.trainer import RunConfig
from verl.protocol import DataProto
from verl.protocol.columns import COLUMNS, WORKER_COLUMNS
from verl.utils.metrics import Metric, reduced
from verl.utils.seqlen_balancing import get_seqlen_balanced_partitions
from verl.workers.update_context import UpdateContext


def worker_view(batch: DataProto) -> DataProto:
    """`batch` without the columns that no worker reads: they need not cross a process."""
    present = set(batch.batch.keys())
    return batch.select(
        batch_keys=[name for name in WORKER_COLUMNS if name in present],
        non_tensor_batch_keys=["traj_uid"],
    )


def pad_rows(batch: DataProto, divisor: int) -> DataProto:
    """Append copies of the first row, emptied of their response, until `divisor` divides R."""
    missing = -len(batch) % divisor
    if missing == 0:
        return batch
    rows = np.concatenate([np.arange(len(batch)), np.zeros(missing, dtype=np.int64)])
    padded = batch.select_idxs(rows)
    columns = dict(padded.batch.items()) | padded.non_tensor_batch
    for column in COLUMNS:
        if column.padding is not None and column.name in columns:
            columns[column.name][-missing:] = column.padding
    # One real token is left: a row without any would divide by zero in attention.
    attention, responses = padded.batch["attention_mask"], padded.batch["response_mask"]
    attention[-missing:] = 0
    attention[-missing:, attention.shape[1] - responses.shape[1] - 1] = 1
    return padded


def balanced_order(batch: DataProto, ranks: int) -> np.ndarray:
    """An order of the R rows in which every rank's contiguous share holds about equal tokens."""
    if ranks == 1:
        return np.arange(len(batch))
    lengths = batch.batch["attention_mask"].sum(-1).tolist()
    parts = get_seqlen_balanced_partitions(lengths, k_partitions=ranks, equal_size=True)
    return np.concatenate([np.asarray(part, dtype=np.int64) for part in parts])


def spread(batch: DataProto, ranks: int, balance: bool) -> tuple[DataProto, np.ndarray]:
    """Pad to a multiple of `ranks` and balance tokens. Returns (batch, its row order)."""
    padded = pad_rows(batch, ranks)
    order = balanced_order(padded, ranks) if balance else np.arange(len(padded))
    return padded.select_idxs(order), order


def gather(result: DataProto, order: np.ndarray, rows: int) -> DataProto:
    """Undo `spread` on a result: the original row order, without the padding rows."""
    return result.select_idxs(np.argsort(order)[:rows])


class MiniBatch(NamedTuple):
    """The rows of one optimiser step, and what holds for all of them."""

    rows: DataProto
    context: UpdateContext


@dataclass(frozen=True)
class MiniBatches:
    """Cuts R rows into ceil(R / size) even mini-batches, `epochs` times.

    `weighted` ones have the columns `trajectory_weight` and `token_weight` (R, T), which sum to 1
    over the mini-batch.
    """

    size: int
    epochs: int
    ranks: int
    balance: bool
    seed: int | None  # draws the order of the rows, with the number of the step; None keeps it
    weighted: bool

    @classmethod
    def of(
        cls, config: ActorConfig | CriticConfig, run: RunConfig, ranks: int, *, weighted: bool
    ) -> MiniBatches:
        """As the settings of the actor or the critic have it."""
        seed = run.seed if config.shuffle else None
        size, epochs = config.ppo_mini_batch_size, config.ppo_epochs
        return cls(size, epochs, ranks, run.balance_batch, seed, weighted)

    def cut(self, batch: DataProto, step: StepContext) -> Iterator[MiniBatch]:
        """The mini-batches of one training step; none when no group carried a signal."""
        rows = worker_view(batch)
        rng = None if self.seed is None else np.random.default_rng([self.seed, step.step])
        count = -(-len(rows) // self.size)
        for _ in range(self.epochs if count else 0):
            order = np.arange(len(rows)) if rng is None else rng.permutation(len(rows))
            for part in np.array_split(order, count):
                yield self._mini_batch(rows.select_idxs(part), step)

    def _mini_batch(self, rows: DataProto, step: StepContext) -> MiniBatch:
        mask = rows.batch["response_mask"]
        if self.weighted:
            rows.batch["trajectory_weight"] = trajectory_token_weights(
                rows.non_tensor_batch["traj_uid"], rows.batch["turn_ids"], mask
            )
            rows.batch["token_weight"] = mask.float() / mask.sum().clamp(min=1)
        shared, _ = spread(rows, self.ranks, self.balance)
        return MiniBatch(shared, UpdateContext(step, **loss_normalizers(mask)))


def optimise(
    update: Callable[[DataProto, UpdateContext], list[dict[str, Metric]]],
    mini_batches: Iterable[MiniBatch],
) -> dict[str, float]:
    """`update` once a mini-batch: a step of the optimiser. All ranks report the same metrics."""
    return reduced(update(*mini_batch)[0] for mini_batch in mini_batches)
