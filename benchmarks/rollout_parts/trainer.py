"""The trainer's policy in this process: log-prob passes and updates as a run makes them."""

from __future__ import annotations

from functools import partial

from verl.algorithms.entropy_control import StepContext
from verl.config.model import MicroBatchConfig
from verl.config.root import PPOConfig
from verl.protocol import DataProto
from verl.trainer.ppo.batching import MiniBatches
from verl.workers.actor.dp_actor import DataParallelPPOActor
from verl.workers.model_loading import load_causal_lm
from verl.workers.runtime import WorkerRuntime
from verl.workers.sharded_model import ShardedModel


class LocalTrainer:
    """One rank without a cluster."""

    def __init__(self, config: PPOConfig) -> None:
        policy = config.actor_rollout_ref
        self._config = config
        engine = ShardedModel(
            partial(load_causal_lm, policy.model),
            policy.actor.fsdp_config,
            WorkerRuntime("cpu", cpu_threads=config.trainer.cpu_threads_per_worker),
            policy.actor.optim,
            total_steps=1,
        )
        self._actor = DataParallelPPOActor(
            policy.actor, engine, temperature=policy.rollout.temperature
        )

    def log_probs(self, batch: DataProto) -> DataProto:
        """`batch` with `old_log_probs` and `entropys`, (R, T), of one forward."""
        rollout = self._config.actor_rollout_ref.rollout
        cut = MicroBatchConfig(
            rollout.log_prob_micro_batch_size_per_gpu,
            rollout.log_prob_use_dynamic_bsz,
            rollout.log_prob_max_token_len_per_gpu,
        )
        result = self._actor.compute_log_prob(batch.batch, cut)
        return batch.union(
            DataProto.from_dict(
                {"old_log_probs": result["log_probs"], "entropys": result["entropys"]}
            )
        )

    def update(self, batch: DataProto) -> None:
        """One pass over the rows in mini-batches; `batch` has `advantages`."""
        size = self._config.actor_rollout_ref.actor.ppo_mini_batch_size
        how = MiniBatches(size, epochs=1, ranks=1, balance=False, seed=None, weighted=False)
        for rows, context in how.cut(batch, StepContext(0, 1)):
            self._actor.update_policy(rows.batch, context)
