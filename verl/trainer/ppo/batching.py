"""From one rollout's rows to mini-batches that every rank can share.

R rows, T response positions. Padding rows make a batch divisible by the number of ranks; their
response mask is zero, so they add nothing to any loss.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from verl.algorithms.aggregation import loss_normalizers, trajectory_token_weights
from verl.protocol import DataProto
from verl.protocol.columns import COLUMNS, WORKER_COLUMNS
from verl.utils.seqlen_balancing import get_seqlen_balanced_partitions


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


def mini_batches(
    batch: DataProto,
    mini_batch_size: int,
    *,
    epochs: int,
    ranks: int,
    balance: bool,
    rng: np.random.Generator | None,
    with_weights: bool,
) -> Iterator[DataProto]:
    """Cut R rows into ceil(R / mini_batch_size) even mini-batches, `epochs` times.

    A mini-batch carries its own normalisers (`batch_num_tokens`, `global_batch_size`) and, with
    `with_weights`, the columns `trajectory_weight` and `token_weight` (R, T), which sum to 1 over
    it. `rng` shuffles the rows; None keeps their order.
    """
    if len(batch) == 0:  # no group of the rollout carried a signal
        return
    count = -(-len(batch) // mini_batch_size)
    for _ in range(epochs):
        rows = np.arange(len(batch)) if rng is None else rng.permutation(len(batch))
        for part in np.array_split(rows, count):
            part_batch = batch.select_idxs(part)
            mask = part_batch.batch["response_mask"]
            if with_weights:
                part_batch.batch["trajectory_weight"] = trajectory_token_weights(
                    part_batch.non_tensor_batch["traj_uid"], part_batch.batch["turn_ids"], mask
                )
                part_batch.batch["token_weight"] = mask.float() / mask.sum().clamp(min=1)
            normalizers = loss_normalizers(mask)
            mini_batch, _ = spread(part_batch, ranks, balance)
            mini_batch.meta_info = {**batch.meta_info, **normalizers}
            yield mini_batch
