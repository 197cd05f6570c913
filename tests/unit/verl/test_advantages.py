import math
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verl.algorithms.advantages import (
    compute_gdpo_outcome_advantage,
    compute_reinforce_plus_plus_baseline_outcome_advantage,
    compute_reinforce_plus_plus_outcome_advantage,
    compute_remax_outcome_advantage,
    grpo_advantage,
    opo_advantage,
    passk_advantage,
    rloo_advantage,
)
from verl.algorithms.gae import compute_gae_across_turns, compute_gae_advantage_return, gae
from verl.trainer.ppo.core_algos import (
    compute_gpg_outcome_advantage,
    compute_grpo_outcome_advantage,
    compute_grpo_passk_outcome_advantage,
    compute_opo_outcome_advantage,
    compute_rloo_outcome_advantage,
)

# Group x: trajectory a in three rows (reward 3), b in one (reward 1). Group y: c alone (reward 5).
REWARD = torch.tensor([3.0, 3.0, 3.0, 1.0, 5.0])
GROUP = np.array(["x", "x", "x", "x", "y"], dtype=object)
TRAJECTORY = np.array(["a", "a", "a", "b", "c"], dtype=object)


def rows(reward_B, width=2):
    """Token-level rewards with the row's reward at the last token, and a full mask."""
    rewards = torch.zeros(len(reward_B), width)
    rewards[:, -1] = reward_B
    return rewards, torch.ones(len(reward_B), width)


# --- group statistics ---------------------------------------------------------------------------


def test_grpo_counts_a_trajectory_once_by_hand():
    # group x over trajectories: mean (3+1)/2 = 2, std sqrt((1+1)/1); y alone: mean 0, std 1
    advantage = grpo_advantage(REWARD, GROUP, TRAJECTORY, epsilon=0.0)
    r = 1 / math.sqrt(2)
    assert advantage.tolist() == pytest.approx([r, r, r, -r, 5.0])
    # counted by rows the mean would be 2.5
    assert grpo_advantage(REWARD, GROUP, normalize_std=False)[0].item() == pytest.approx(0.5)


def test_grpo_without_std():
    advantage = grpo_advantage(REWARD, GROUP, TRAJECTORY, normalize_std=False)
    assert advantage.tolist() == [1.0, 1.0, 1.0, -1.0, 5.0]


def test_grpo_rows_of_one_trajectory_may_differ():
    # a: rows 1.0 and 0.8 (a penalised turn), b: 0.1. mean = (0.9 + 0.1)/2 = 0.5
    # variance = ((0.25 + 0.09)/2 + 0.16) / (2 - 1) = 0.33
    advantage = grpo_advantage(torch.tensor([1.0, 0.8, 0.1]), [0, 0, 0], [0, 0, 1], epsilon=0.0)
    expected = np.array([0.5, 0.3, -0.4]) / math.sqrt(0.33)
    assert advantage.tolist() == pytest.approx(expected.tolist(), rel=1e-5)


def test_equal_trajectories_with_one_penalised_turn_stay_bounded():
    # both trajectories average -0.01: a std over trajectory means alone would be 0
    reward = torch.tensor([-0.1] + [0.0] * 9 + [-0.1] + [0.0] * 9)
    advantage = grpo_advantage(reward, [0] * 20, [0] * 10 + [1] * 10)
    assert advantage.abs().max().item() < 3.0


def test_equal_rewards_give_exactly_zero():
    reward = torch.full((7,), 0.1)
    assert grpo_advantage(reward, [0] * 7, [0, 0, 0, 1, 1, 2, 3]).tolist() == [0.0] * 7


def test_a_trajectory_in_two_groups_is_refused():
    with pytest.raises(ValueError, match="rows in two groups"):
        grpo_advantage(torch.ones(2), ["x", "y"], ["a", "a"])


@st.composite
def grouped_rewards(draw):
    trajectories = draw(st.integers(2, 8))
    group_of = draw(st.lists(st.integers(0, 2), min_size=trajectories, max_size=trajectories))
    reward_of = draw(st.lists(st.integers(-5, 10), min_size=trajectories, max_size=trajectories))
    rows_of = draw(st.lists(st.integers(1, 4), min_size=trajectories, max_size=trajectories))
    trajectory = np.repeat(np.arange(trajectories), rows_of)
    reward = torch.tensor(np.array(reward_of, dtype=np.float32)[trajectory])
    return reward, np.array(group_of)[trajectory], trajectory


@pytest.mark.parametrize("estimator", [grpo_advantage, rloo_advantage])
@given(case=grouped_rewards(), seed=st.integers(0, 1000))
@settings(max_examples=40)
def test_row_order_and_row_count_do_not_matter(estimator, case, seed):
    reward, group, trajectory = case
    advantage = estimator(reward, group, trajectory)
    order = np.random.default_rng(seed).permutation(len(reward))
    shuffled = estimator(reward[order], group[order], trajectory[order])
    assert torch.allclose(shuffled, advantage[order], atol=1e-6)
    first_rows = np.unique(trajectory, return_index=True)[1]
    once = estimator(reward[first_rows], group[first_rows])
    assert torch.allclose(advantage[first_rows], once, atol=1e-6)


def test_rloo_by_hand():
    # x: a = 3 - 1, b = 1 - 3; y alone keeps its reward
    assert rloo_advantage(REWARD, GROUP, TRAJECTORY).tolist() == [2.0, 2.0, 2.0, -2.0, 5.0]
    # three trajectories 1, 2, 6: 1 - 4, 2 - 3.5, 6 - 1.5
    assert rloo_advantage(torch.tensor([1.0, 2.0, 6.0]), [0, 0, 0]).tolist() == [-3.0, -1.5, 4.5]


def test_opo_by_hand():
    # a has 2+2+2 = 6 tokens and reward 3, b 2 tokens and reward 1: baseline (18 + 2) / 8 = 2.5
    length = torch.full((5,), 2)
    advantage = opo_advantage(REWARD, GROUP, TRAJECTORY, length_B=length)
    assert advantage.tolist() == [0.5, 0.5, 0.5, -1.5, 5.0]


def test_passk_by_hand():
    # group 0: rewards 1, 4, 3: the best gets 4 - 3; group 1: a tie is worth 0
    reward, group = torch.tensor([1.0, 4.0, 3.0, 2.0, 2.0]), [0, 0, 0, 1, 1]
    plain = passk_advantage(reward, group, normalize_std=False)
    assert plain.tolist() == [0.0, 1.0, 0.0, 0.0, 0.0]
    # mean 8/3, squared deviations 25/9 + 16/9 + 1/9 = 42/9, std sqrt(42/9/2)
    scaled = passk_advantage(reward, group, epsilon=0.0)
    assert scaled[1].item() == pytest.approx(1 / math.sqrt(42 / 18))
    with pytest.raises(ValueError, match="at least 2 trajectories"):
        passk_advantage(REWARD, GROUP, TRAJECTORY)


# --- the token-level functions ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("estimator", "pure"),
    [
        (compute_grpo_outcome_advantage, grpo_advantage),
        (compute_rloo_outcome_advantage, rloo_advantage),
    ],
)
def test_token_level_form_spreads_the_advantage_and_skips_padding(estimator, pure):
    rewards, mask = rows(REWARD)
    mask[3, 0] = 0
    padded_rewards = torch.cat([rewards, torch.full((1, 2), 9.0)])
    padded_mask = torch.cat([mask, torch.zeros(1, 2)])
    advantage, returns = estimator(
        token_level_rewards=padded_rewards,
        response_mask=padded_mask,
        index=np.append(GROUP, "x"),
        traj_index=np.append(TRAJECTORY, "padding"),
    )
    expected = pure(REWARD, GROUP, TRAJECTORY).unsqueeze(-1) * mask
    assert torch.allclose(advantage[:5], expected)
    assert advantage[5].tolist() == [0.0, 0.0]
    assert torch.equal(advantage, returns)


def test_inputs_are_not_changed():
    rewards, mask = rows(REWARD)
    before = rewards.clone()
    compute_grpo_outcome_advantage(rewards, mask, GROUP, traj_index=TRAJECTORY)
    assert torch.equal(rewards, before)


def test_std_switch_comes_from_the_argument_then_the_config():
    rewards, mask = rows(torch.tensor([1.0, 5.0]))
    config = SimpleNamespace(norm_adv_by_std_in_grpo=False)
    by_config, _ = compute_grpo_outcome_advantage(rewards, mask, [0, 0], config=config)
    by_argument, _ = compute_grpo_outcome_advantage(
        rewards, mask, [0, 0], norm_adv_by_std_in_grpo=True, config=config
    )
    assert by_config[:, 0].tolist() == [-2.0, 2.0]
    # std of (1, 5) = sqrt(8)
    assert by_argument[1, 0].item() == pytest.approx(2 / math.sqrt(8), rel=1e-5)
    passk, _ = compute_grpo_passk_outcome_advantage(rewards, mask, [0, 0], config=config)
    assert passk[:, 0].tolist() == [0.0, 4.0]


def test_opo_token_level_reads_lengths_from_the_mask():
    # lengths 1 and 2, rewards 1 and 4: baseline (1*1 + 2*4) / 3 = 3
    rewards, mask = rows(torch.tensor([1.0, 4.0]))
    mask[0, 0] = 0
    advantage, _ = compute_opo_outcome_advantage(rewards, mask, [0, 0])
    assert advantage.tolist() == [[0.0, -2.0], [1.0, 1.0]]


def test_gpg_by_hand():
    # 4 trajectories, 3 with a reward: alpha 4/3; group means 1 and 0; f_norm 4
    rewards, mask = rows(torch.tensor([2.0, 0.0, 3.0, -3.0]))
    advantage, _ = compute_gpg_outcome_advantage(rewards, mask, [0, 0, 1, 1], f_norm=4.0)
    # 4/3 * [1, -1, 3, -3] / 4
    assert advantage[:, 0].tolist() == pytest.approx([1 / 3, -1 / 3, 1.0, -1.0])


def test_reinforce_plus_plus_by_hand():
    # gamma 1/2, an observation token in the middle takes no time; rewards 0, -, 4 | 2, 0, -
    rewards = torch.tensor([[0.0, 7.0, 4.0], [2.0, 0.0, 7.0]])
    mask = torch.tensor([[1, 0, 1], [1, 1, 0]])
    advantage, returns = compute_reinforce_plus_plus_outcome_advantage(
        rewards, mask, config=SimpleNamespace(gamma=0.5)
    )
    assert returns.tolist() == [[2.0, 0.0, 4.0], [2.0, 0.0, 0.0]]
    # active returns 2, 4, 2, 0: mean 2, variance (0+4+0+4)/3
    std = math.sqrt(8 / 3)
    assert advantage[0].tolist() == pytest.approx([0.0, 0.0, 2 / std])
    undiscounted = compute_reinforce_plus_plus_outcome_advantage(rewards, mask)[1]
    assert undiscounted[0].tolist() == [4.0, 0.0, 4.0]


def test_reinforce_plus_plus_baseline_by_hand():
    # centred: 1, -1 on two tokens each, variance 4/3
    rewards, mask = rows(torch.tensor([3.0, 1.0]))
    advantage, _ = compute_reinforce_plus_plus_baseline_outcome_advantage(rewards, mask, [0, 0])
    r = 1 / math.sqrt(4 / 3)
    assert advantage[:, 0].tolist() == pytest.approx([r, -r])


def test_remax_by_hand():
    rewards = torch.tensor([[1.0, 2.0, 5.0]])
    mask = torch.tensor([[1.0, 1.0, 0.0]])
    advantage, returns = compute_remax_outcome_advantage(rewards, torch.tensor([0.5]), mask)
    assert returns.tolist() == [[3.0, 2.0, 0.0]]
    assert advantage.tolist() == [[2.5, 1.5, 0.0]]


def test_gdpo_by_hand():
    rewards, mask = rows(torch.zeros(2), width=1)
    columns = {"format": np.array([1.0, 0.0]), "answer": np.array([0.0, 4.0])}
    config = SimpleNamespace(
        gdpo_reward_keys=["format", "answer"],
        gdpo_reward_weights=[1.0, 3.0],
        norm_adv_by_std_in_grpo=True,
    )
    advantage, _ = compute_gdpo_outcome_advantage(
        rewards, mask, [0, 0], config=config, non_tensor_batch=columns
    )
    # each reward normalised: (r, -r) + 3 * (-r, r) = (-2r, 2r), whitened: +-1/sqrt 2
    r = 1 / math.sqrt(2)
    assert advantage[:, 0].tolist() == pytest.approx([-r, r], rel=1e-4)
    # without the columns it is GRPO on the token-level rewards, whitened
    plain, _ = compute_gdpo_outcome_advantage(
        rows(torch.tensor([0.0, 9.0]))[0], *[rows(REWARD[:2])[1], [0, 0]]
    )
    assert plain[1, 0].item() > 0


# --- GAE ----------------------------------------------------------------------------------------


def one_row_each(n):
    return torch.arange(n), torch.zeros(n, dtype=torch.long)


def test_gae_by_hand():
    # gamma 1/2, lambda 1/2; tokens r 0, 2; V 1, 2
    # A1 = 2 - 2 = 0; A0 = 0 + 0.5*2 - 1 + 0.25*A1 = 0; returns = A + V
    reward, value = torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 2.0]])
    advantage, returns = gae(reward, value, torch.ones(1, 2), 0.5, 0.5, *one_row_each(1))
    assert advantage.tolist() == [[0.0, 0.0]]
    assert returns.tolist() == [[1.0, 2.0]]
    # r 1, 4: A1 = 4 - 2 = 2; A0 = 1 + 0.5*2 - 1 + 0.25*2 = 1.5
    reward = torch.tensor([[1.0, 4.0]])
    advantage, returns = gae(reward, value, torch.ones(1, 2), 0.5, 0.5, *one_row_each(1))
    assert advantage.tolist() == [[1.5, 2.0]]
    assert returns.tolist() == [[2.5, 4.0]]


def test_gae_skips_observation_tokens():
    # the second case above with an observation of value 99 and reward 99 between the two tokens
    reward, value = torch.tensor([[1.0, 99.0, 4.0, 99.0]]), torch.tensor([[1.0, 99.0, 2.0, 99.0]])
    mask = torch.tensor([[1, 0, 1, 0]])
    advantage, returns = gae(reward, value, mask, 0.5, 0.5, *one_row_each(1))
    assert advantage.tolist() == [[1.5, 0.0, 2.0, 0.0]]
    assert returns.tolist() == [[2.5, 0.0, 4.0, 0.0]]


def test_gae_looks_ahead_to_the_next_turn():
    # the same two tokens as two turns, given in the wrong order, beside another trajectory
    reward = torch.tensor([[4.0, 0.0], [3.0, 0.0], [1.0, 0.0]])
    value = torch.tensor([[2.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    mask = torch.tensor([[1, 0], [1, 0], [1, 0]])
    ids, turns = np.array(["a", "b", "a"], dtype=object), np.array([1, 0, 0])
    advantage, returns = gae(reward, value, mask, 0.5, 0.5, ids, turns)
    assert advantage[:, 0].tolist() == [2.0, 2.0, 1.5]
    assert returns[:, 0].tolist() == [4.0, 3.0, 2.5]


def test_gae_whitens_over_active_tokens_once():
    reward, value = torch.tensor([[1.0, 4.0]]), torch.tensor([[1.0, 2.0]])
    advantage, returns = compute_gae_advantage_return(reward, value, torch.ones(1, 2), 0.5, 0.5)
    # 1.5 and 2: mean 1.75, variance 0.125
    r = 0.25 / math.sqrt(0.125)
    assert advantage.tolist()[0] == pytest.approx([-r, r], rel=1e-5)
    assert returns.tolist() == [[2.5, 4.0]]


def test_gae_reads_discounts_from_the_config_and_routes_turns():
    reward, value = torch.tensor([[1.0], [4.0]]), torch.tensor([[1.0], [2.0]])
    _, returns = compute_gae_advantage_return(
        token_level_rewards=reward,
        values=value,
        response_mask=torch.ones(2, 1),
        config=SimpleNamespace(gamma=0.5, lam=0.5),
        index=np.array([0, 0]),
        traj_index=np.array([7, 7]),
        turn_index=np.array([0, 1]),
    )
    assert returns.tolist() == [[2.5], [4.0]]


def test_repeated_turns_are_refused_but_padding_may_repeat():
    reward = torch.ones(3, 2)
    mask = torch.tensor([[1, 1], [1, 1], [0, 0]])
    ids = np.array([0, 0, 0])
    with pytest.raises(ValueError, match="same turn of the same trajectory"):
        compute_gae_across_turns(reward, reward, mask, 1.0, 1.0, ids, np.array([0, 0, 1]))
    advantage, _ = compute_gae_across_turns(
        reward, reward, mask, 1.0, 1.0, ids, np.array([0, 1, 1])
    )
    assert advantage[2].tolist() == [0.0, 0.0]


@given(
    st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=4), min_size=1, max_size=4),
    st.floats(0.0, 1.0),
    st.floats(0.0, 1.0),
    st.integers(0, 1000),
)
@settings(max_examples=50)
def test_both_layouts_give_the_same_advantages(tokens_of_turns, gamma, lam, seed):
    """Turns as rows (shuffled) or as one row a trajectory, with observation gaps between turns."""
    generator = torch.Generator().manual_seed(seed)
    n, width, turn_width = len(tokens_of_turns), 24, 4
    joint_reward = torch.randn(n, width, generator=generator)
    joint_value = torch.randn(n, width, generator=generator)
    joint_mask = torch.zeros(n, width, dtype=torch.long)
    turns = [(j, t, tokens) for j, ts in enumerate(tokens_of_turns) for t, tokens in enumerate(ts)]
    order = torch.randperm(len(turns), generator=generator).tolist()
    reward, value = torch.zeros(len(turns), turn_width), torch.zeros(len(turns), turn_width)
    mask = torch.zeros(len(turns), turn_width, dtype=torch.long)
    spans, next_column = {}, [0] * n
    for row, (j, _, tokens) in zip(order, turns, strict=True):
        span = slice(next_column[j], next_column[j] + tokens)
        next_column[j] += tokens + 2
        joint_mask[j, span] = 1
        mask[row, :tokens] = 1
        reward[row, :tokens] = joint_reward[j, span]
        value[row, :tokens] = joint_value[j, span]
        spans[row] = (j, span, tokens)
    ids, turn_of_row = np.zeros(len(turns), dtype=int), np.zeros(len(turns), dtype=int)
    for row, (j, t, _) in zip(order, turns, strict=True):
        ids[row], turn_of_row[row] = j, t

    joint = gae(joint_reward, joint_value, joint_mask, gamma, lam, *one_row_each(n))
    split = gae(reward, value, mask, gamma, lam, ids, turn_of_row)
    for joint_BT, split_BT in zip(joint, split, strict=True):
        for row, (j, span, tokens) in spans.items():
            assert torch.allclose(split_BT[row, :tokens], joint_BT[j, span], atol=1e-5)
    if joint_mask.sum() >= 2:
        whitened = compute_gae_advantage_return(joint_reward, joint_value, joint_mask, gamma, lam)
        across = compute_gae_across_turns(reward, value, mask, gamma, lam, ids, turn_of_row)
        for row, (j, span, tokens) in spans.items():
            assert torch.allclose(across[0][row, :tokens], whitened[0][j, span], atol=1e-4)


def test_gae_of_a_large_batch_is_fast():
    reward, value = torch.randn(1000, 512), torch.randn(1000, 512)
    ids, turn = np.arange(1000) // 30, np.arange(1000) % 30
    start = time.perf_counter()
    compute_gae_across_turns(reward, value, torch.ones(1000, 512), 1.0, 0.95, ids, turn)
    # about 0.1 s alone on one core; a loop over tokens and rows would take minutes
    assert time.perf_counter() - start < 5.0
