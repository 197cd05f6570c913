"""One batch -> the optimiser steps of a worker group."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import numpy as np

from verl.config.actor import ActorConfig
from verl.config.critic import CriticConfig
from verl.config.trainer import RunConfig
from verl.protocol import DataProto
from verl.trainer.ppo.batching import mini_batches, worker_view
from verl.utils.metric import reduce_metrics


def run_updates(
    update: Callable[[DataProto], DataProto],
    batch: DataProto,
    config: ActorConfig | CriticConfig,
    run: RunConfig,
    step: int,
    ranks: int,
    *,
    with_weights: bool,
) -> dict[str, float]:
    """`update` once a mini-batch. Metrics are means over mini-batches, skipped steps a sum.

    The order of the rows is drawn from the run's seed and `step`. `with_weights`: see
    `mini_batches`.
    """
    rng = np.random.default_rng([run.seed, step])
    collected = defaultdict(list)
    for mini_batch in mini_batches(
        worker_view(batch),
        config.ppo_mini_batch_size,
        epochs=config.ppo_epochs,
        ranks=ranks,
        balance=run.balance_batch,
        rng=rng if config.shuffle else None,
        with_weights=with_weights,
    ):
        for name, of_ranks in update(mini_batch).meta_info["metrics"].items():
            collected[name].append(of_ranks[0])  # equal on all ranks
    skipped = {k: sum(v) for k, v in collected.items() if k.endswith("/skipped_steps")}
    return reduce_metrics(collected) | skipped
