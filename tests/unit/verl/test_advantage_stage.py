"""Rewards and advantages from a rollout, in both contexts."""

from types import SimpleNamespace

import numpy as np
import torch

from verl import DataProto
from verl.config.actor import ActorConfig
from verl.config.algorithm import AlgorithmConfig
from verl.trainer.ppo.advantage_stage import (
    add_advantages,
    rows_with_signal,
    token_level_rewards,
    with_episode_outcome,
)


def rollout(scores, mask, traj, uid, turn, **columns) -> DataProto:
    scores = torch.tensor(scores, dtype=torch.float32)
    return DataProto.from_single_dict(
        {
            "token_level_scores": scores,
            "token_level_rewards": scores.clone(),
            "response_mask": torch.tensor(mask),
            "traj_uid": np.array(traj, dtype=object),
            "uid": np.array(uid, dtype=object),
            "turn": np.array(turn),
            **columns,
        }
    )


def two_turns_of_two_episodes() -> DataProto:
    """Turn rows. Episode a earns 10 at its second turn, episode b nothing."""
    return rollout(
        scores=[[0, 0], [10, 0], [0, 0], [0, 0]],
        mask=[[1, 1], [1, 0], [1, 0], [1, 1]],
        traj=["a", "a", "b", "b"],
        uid=["g"] * 4,
        turn=[0, 1, 0, 1],
    )


def settings(**algorithm) -> SimpleNamespace:
    return SimpleNamespace(
        actor_rollout_ref=SimpleNamespace(actor=ActorConfig()),
        algorithm=AlgorithmConfig(**algorithm),
    )


def test_every_turn_row_sees_the_episode_outcome():
    rewards = with_episode_outcome(two_turns_of_two_episodes())
    assert rewards.sum(-1).tolist() == [10, 10, 0, 0]
    assert rewards[0].tolist() == [0, 10]  # written at the last active token


def test_grpo_counts_each_trajectory_once():
    batch = add_advantages(
        two_turns_of_two_episodes(),
        AlgorithmConfig(adv_estimator="grpo", norm_adv_by_std_in_grpo=False),
    )
    # rewards 10 and 0, mean 5: +5 for each active token of a, -5 for b
    assert batch.batch["advantages"].tolist() == [[5, 5], [5, 0], [-5, 0], [-5, -5]]


def test_rows_of_a_group_without_differences_carry_no_signal():
    batch = rollout(
        scores=[[10.0], [10.0], [10.0], [0.0]],
        mask=[[1]] * 4,
        traj=["a", "b", "c", "d"],
        uid=["g", "g", "h", "h"],
        turn=[0] * 4,
    )
    batch = add_advantages(batch, AlgorithmConfig(adv_estimator="grpo"))
    assert rows_with_signal(batch).tolist() == [2, 3]


def test_invalid_actions_are_penalised_where_they_end():
    batch = rollout(
        scores=[[0.0, 10.0]],
        mask=[[1, 1]],
        traj=["a"],
        uid=["g"],
        turn=[0],
        invalid_action_mask=torch.tensor([[1.0, 0.0]]),
    )
    rewards, metrics = token_level_rewards(batch, settings(), kl_coef=0.0)
    torch.testing.assert_close(rewards, torch.tensor([[-0.1, 10.0]]))  # 0 - 0.1 * 1
    np.testing.assert_allclose(metrics["training/invalid_action_penalty"], 0.1, rtol=1e-6)


def test_kl_in_reward_subtracts_the_estimate():
    batch = rollout(
        scores=[[0.0, 10.0]],
        mask=[[1, 1]],
        traj=["a"],
        uid=["g"],
        turn=[0],
        invalid_action_mask=torch.zeros(1, 2),
        old_log_probs=torch.tensor([[-1.0, -2.0]]),
        ref_log_prob=torch.tensor([[-1.5, -2.0]]),
    )
    rewards, metrics = token_level_rewards(batch, settings(use_kl_in_reward=True), kl_coef=0.2)
    # k1 = old - ref = 0.5 and 0; reward 0 - 0.2 * 0.5 = -0.1
    torch.testing.assert_close(rewards, torch.tensor([[-0.1, 10.0]]))
    np.testing.assert_allclose(metrics["actor/reward_kl_penalty"], 0.25, rtol=1e-6)


def test_gae_uses_the_rewards_of_each_turn_alone():
    batch = two_turns_of_two_episodes()
    batch.batch["values"] = torch.zeros(4, 2)
    batch = add_advantages(batch, AlgorithmConfig(adv_estimator="gae", gamma=1.0, lam=1.0))
    # no discount, no values: every token of a returns 10, every token of b 0
    assert batch.batch["returns"].tolist() == [[10, 10], [10, 0], [0, 0], [0, 0]]


def test_episodes_that_earned_the_same_by_other_ways_carry_no_signal():
    # 0.1 + 0.7 + 0.2 in another order: equal rewards, whatever the rounding of partial sums
    batch = rollout(
        scores=[[0.1], [0.7], [0.2], [0.2], [0.1], [0.7]],
        mask=[[1]] * 6,
        traj=["a"] * 3 + ["b"] * 3,
        uid=["g"] * 6,
        turn=[0, 1, 2] * 2,
    )
    batch = add_advantages(batch, AlgorithmConfig(adv_estimator="grpo"))
    assert rows_with_signal(batch).tolist() == []


def test_a_group_with_signal_keeps_its_average_member():
    # rewards 0, 5, 10: the advantage of the middle one is 0, but the group has a signal
    batch = rollout(
        scores=[[0.0], [5.0], [10.0]], mask=[[1]] * 3, traj=["a", "b", "c"], uid=["g"] * 3,
        turn=[0] * 3,
    )  # fmt: skip
    batch = add_advantages(batch, AlgorithmConfig(adv_estimator="grpo"))
    assert batch.batch["advantages"][1, 0] == 0
    assert rows_with_signal(batch).tolist() == [0, 1, 2]


def test_a_trajectory_left_alone_in_its_group_teaches_nothing():
    batch = rollout(
        scores=[[10.0], [0.0], [10.0]], mask=[[1]] * 3, traj=["a", "b", "c"],
        uid=["g", "g", "h"], turn=[0] * 3,
    )  # fmt: skip
    advantages = add_advantages(
        batch, AlgorithmConfig(adv_estimator="grpo", norm_adv_by_std_in_grpo=False)
    ).batch["advantages"]
    # g: rewards 10 and 0, mean 5. h lost its other members: nothing to compare with
    assert advantages.flatten().tolist() == [5, -5, 0]
