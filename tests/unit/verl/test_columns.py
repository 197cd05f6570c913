"""The batch of a training step against the table of its columns."""

from dataclasses import replace

import numpy as np
import torch

from verl import DataProto
from verl.algorithms.entropy_control import StepContext
from verl.config.actor import ActorRolloutRefConfig, RolloutConfig
from verl.config.algorithm import AlgorithmConfig
from verl.config.critic import CriticConfig, CriticModelConfig
from verl.config.model import ModelConfig
from verl.config.plan import make_plan
from verl.config.root import PPOConfig
from verl.protocol.columns import COLUMNS, WORKER_COLUMNS
from verl.trainer.ppo.advantage_stage import (
    add_advantages,
    compare_with_rollout,
    token_level_rewards,
)
from verl.trainer.ppo.batching import MiniBatches, worker_view
from verl.workers.fsdp_workers import CriticWorker, PolicyWorker

ROWS, PROMPT, RESPONSE = 4, 3, 5
SHAPES = {"R": (ROWS,), "R T": (ROWS, RESPONSE), "R P+T": (ROWS, PROMPT + RESPONSE)}


def rollout() -> DataProto:
    """Ones of the types of the table: four trajectories of a turn, two groups."""
    columns = {
        c.name: (torch if isinstance(c.dtype, torch.dtype) else np).ones(
            SHAPES[c.shape], dtype=c.dtype
        )
        for c in COLUMNS
        if c.producer == "rows"
    }
    columns["turn_ids"] *= 0
    columns["uid"] = np.array(["a", "a", "b", "b"], dtype=object)
    columns["traj_uid"] = np.array([f"t{row}" for row in range(ROWS)], dtype=object)
    return DataProto.from_single_dict(columns)


def test_a_training_step_makes_the_columns_of_the_table(tiny_model_path, single_rank):
    config = PPOConfig(
        algorithm=AlgorithmConfig(adv_estimator="gae", rollout_correction="token_tis"),
        actor_rollout_ref=ActorRolloutRefConfig(
            model=ModelConfig(path=tiny_model_path), rollout=RolloutConfig(name="hf")
        ),
        critic=CriticConfig(model=CriticModelConfig(path=tiny_model_path, load_method="auto")),
    )
    plan = replace(make_plan(config), has_reference=True)
    actor = PolicyWorker(config.actor_rollout_ref, plan, single_rank, None)
    critic = CriticWorker(config.critic, single_rank)
    actor.init_model(10)
    critic.init_model(10)

    batch = rollout()
    for scores in (actor.compute_log_prob, actor.compute_ref_log_prob, critic.compute_values):
        batch = batch.union(scores(worker_view(batch)))
    batch.batch["token_level_rewards"], _ = token_level_rewards(batch, config, 0.0)
    compare_with_rollout(batch, config.algorithm)
    batch = add_advantages(batch, config.algorithm)
    found = {**batch.batch, **batch.non_tensor_batch}
    table = {c.name: (SHAPES[c.shape], c.dtype) for c in COLUMNS if c.producer != "mini-batches"}
    assert {name: (tuple(v.shape), v.dtype) for name, v in found.items()} == table

    cut = MiniBatches(ROWS, epochs=1, ranks=1, balance=False, seed=None, weighted=True)
    ((rows, context),) = cut.cut(batch, StepContext(0, 10))
    sent = {name: (tuple(v.shape), v.dtype) for name, v in rows.batch.items()}
    table = {c.name: (SHAPES[c.shape], c.dtype) for c in COLUMNS if c.name in WORKER_COLUMNS}
    assert sent == table
    assert actor.update_actor(rows, context) and critic.update_critic(rows, context)
