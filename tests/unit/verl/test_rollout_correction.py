"""Weights and figures of the mismatch between rollout engine and trainer, by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verl.algorithms.rollout_correction import (
    MAX_LOG_RATIO,
    correction,
    mismatch_metrics,
    sequence_tis,
    token_log_ratio,
    token_mask,
    token_tis,
)
from verl.config.checks import check_values
from verl.config.compose import compose_config
from verl.trainer.ppo.core_algos import compute_policy_loss_vanilla
from verl.utils.errors import UserError

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
# ratios 1/2, 1, 3 and 4, 1/4; what is off the mask must not count
RATIO = torch.tensor([[0.5, 1.0, 3.0, 100.0], [4.0, 0.25, 100.0, 100.0]])
LOG_RATIO = RATIO.log()


def test_the_ratio_is_old_over_rollout_on_active_tokens():
    old, rollout = torch.tensor([[0.2, 0.9]]).log(), torch.tensor([[0.4, 0.1]]).log()
    log_ratio = token_log_ratio(old, rollout, torch.tensor([[1, 0]]))
    torch.testing.assert_close(log_ratio.exp(), torch.tensor([[0.5, 1.0]]).double())  # 0.2 / 0.4


def test_a_token_of_probability_zero_is_bounded_not_nan():
    never = torch.tensor([[-math.inf, -1.0, -math.inf]])
    once = torch.tensor([[-1.0, -math.inf, -math.inf]])
    log_ratio = token_log_ratio(never, once, torch.tensor([[1, 1, 0]]))
    assert log_ratio.tolist() == [[-MAX_LOG_RATIO, MAX_LOG_RATIO, 0.0]]
    metrics = mismatch_metrics(never, once, torch.tensor([[1, 1, 0]]))
    assert all(math.isfinite(value) for value in metrics.values())


def test_token_tis_caps_each_token():
    weight, clipped = token_tis(LOG_RATIO, MASK, highest=2.0)
    expected = torch.tensor([[0.5, 1.0, 2.0], [2.0, 0.25, 2.0]])
    torch.testing.assert_close(weight[:, :3], expected)
    assert clipped == pytest.approx(2 / 5)  # 3 and 4, of five active tokens


def test_sequence_tis_multiplies_over_all_rows_of_a_trajectory():
    # row products: 1/2 * 1 * 3 = 1.5 and 4 * 1/4 = 1
    apart, clipped = sequence_tis(LOG_RATIO, MASK, torch.tensor([0, 1]), highest=1.2)
    torch.testing.assert_close(apart[:, 0], torch.tensor([1.2, 1.0]))
    assert clipped == 0.5  # one of two trajectories
    together, clipped = sequence_tis(LOG_RATIO, MASK, torch.tensor([0, 0]), highest=2.0)
    torch.testing.assert_close(together, torch.full((2, 4), 1.5))  # 1.5 * 1
    assert clipped == 0.0


def test_a_long_trajectory_overflows_nothing():
    log_ratio = torch.full((1, 1000), 15.0, dtype=torch.float64)
    weight, clipped = sequence_tis(log_ratio, torch.ones(1, 1000), torch.tensor([0]), highest=2.0)
    assert weight.unique().tolist() == [2.0] and clipped == 1.0
    weight, clipped = sequence_tis(-log_ratio, torch.ones(1, 1000), torch.tensor([0]), highest=2.0)
    assert weight.unique().tolist() == [0.0] and clipped == 0.0


def test_token_mask_keeps_the_tokens_of_the_band():
    weight, clipped = token_mask(LOG_RATIO, MASK, lowest=0.4, highest=3.5)
    assert weight[0, :3].tolist() == [1.0, 1.0, 1.0]
    assert weight[1, :2].tolist() == [0.0, 0.0]
    assert clipped == pytest.approx(2 / 5)


@pytest.mark.parametrize("mode", ["token_tis", "sequence_tis", "token_mask"])
def test_agreement_weighs_one(mode):
    log_probs = torch.randn(3, 4)
    mask = torch.ones(3, 4)
    log_ratio = token_log_ratio(log_probs, log_probs, mask)
    weight, clipped = correction(
        mode, log_ratio, mask, torch.tensor([0, 1, 1]), lowest=0.5, highest=2.0
    )
    assert weight.dtype == torch.float32
    assert torch.equal(weight, torch.ones(3, 4)) and clipped == 0.0


def test_modes_are_the_functions_of_their_names():
    trajectory = torch.tensor([0, 1])
    bounds = {"lowest": 0.5, "highest": 2.0}
    for mode, expected in {
        "token_tis": token_tis(LOG_RATIO, MASK, 2.0),
        "sequence_tis": sequence_tis(LOG_RATIO, MASK, trajectory, 2.0),
        "token_mask": token_mask(LOG_RATIO, MASK, 0.5, 2.0),
    }.items():
        got = correction(mode, LOG_RATIO, MASK, trajectory, **bounds)
        assert torch.equal(got.weight_BT, expected.weight_BT)
        assert got.clipped_share == expected.clipped_share


def test_mismatch_by_hand():
    rollout = torch.tensor([[0.5, 0.2, 0.9]]).log()
    old = torch.tensor([[0.25, 0.2, 0.1]]).log()
    metrics = mismatch_metrics(old, rollout, torch.tensor([[1, 1, 0]]))
    expected = {
        # |0.5 - 0.25| = 0.25 and 0; their mean 0.125, each 0.125 away from it
        "probs_diff_mean": 0.125,
        "probs_diff_max": 0.25,
        "probs_diff_std": 0.125,
        # ratios 1/2 and 1: log 2 and 0
        "kl_k1": math.log(2) / 2,
        # 1/2 - 1 + log 2 and 0
        "kl_k3": (math.log(2) - 0.5) / 2,
        # (1/2 + 1)^2 / (2 * (1/4 + 1)) = 2.25 / 2.5
        "ess": 0.9,
    }
    expected = {f"training/rollout_{name}": value for name, value in expected.items()}
    assert metrics == pytest.approx(expected, abs=1e-7)


def test_without_mismatch_the_figures_are_zero_and_one():
    log_probs = torch.randn(2, 3)
    metrics = mismatch_metrics(log_probs, log_probs, torch.ones(2, 3))
    assert metrics.pop("training/rollout_ess") == 1.0
    assert len(metrics) == 5 and set(metrics.values()) == {0.0}


log_probs = st.lists(st.floats(-40, 0, width=32), min_size=6, max_size=6)


@given(old=log_probs, rollout=log_probs, highest=st.floats(1, 10))
@settings(max_examples=100)
def test_weights_and_figures_stay_in_their_ranges(old, rollout, highest):
    old, rollout = torch.tensor(old).view(2, 3), torch.tensor(rollout).view(2, 3)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    log_ratio = token_log_ratio(old, rollout, mask)
    for mode in ("token_tis", "sequence_tis", "token_mask"):
        weight, clipped = correction(
            mode, log_ratio, mask, torch.tensor([0, 1]), lowest=0.5, highest=highest
        )
        assert weight.shape == (2, 3)
        assert float(weight.min()) >= 0 and float(weight.max()) <= highest * (1 + 1e-6)
        assert 0 <= clipped <= 1
    metrics = mismatch_metrics(old, rollout, mask)
    assert 0 < metrics["training/rollout_ess"] <= 1 + 1e-9
    assert metrics["training/rollout_kl_k3"] >= 0


@given(seed=st.integers(0, 10**6))
@settings(max_examples=50)
def test_weighting_the_loss_is_weighting_the_advantages(seed):
    """min, max and clip of PPO commute with a factor that is not negative, dual clip included."""
    generator = torch.Generator().manual_seed(seed)
    old, advantages = (torch.randn(3, 5, generator=generator) for _ in range(2))
    log_prob = (old + torch.randn(3, 5, generator=generator)).requires_grad_()
    weight = 2 * torch.rand(3, 5, generator=generator) * (advantages.abs() > 0.3)  # some are 0
    mask = torch.ones(3, 5)

    def loss_and_gradient(advantages, **weights):
        loss, _ = compute_policy_loss_vanilla(old, log_prob, advantages, mask, **weights)
        (gradient,) = torch.autograd.grad(loss, log_prob)
        return loss.detach(), gradient

    of_loss = loss_and_gradient(advantages, rollout_is_weights=weight)
    of_advantages = loss_and_gradient(advantages * weight)
    torch.testing.assert_close(of_loss, of_advantages)


@pytest.mark.parametrize(
    ("mode", "bound", "message"),
    [
        ("token_tis", "max=0.5", r"max=0.5 would cut tokens on which engine and trainer agree"),
        ("sequence_tis", "max=0.9", r"max=0.9 would cut .*at least 1"),
        ("token_mask", "min=1.5", r"min=1.5 would mask tokens .*at most 1"),
        ("token_tis", "min=1.5", None),  # it has no lower bound
        ("none", "max=0.5", None),
    ],
)
def test_bounds_that_exclude_agreement_are_refused(mode, bound, message):
    _, config = compose_config(
        [f"algorithm.rollout_correction={mode}", f"algorithm.rollout_correction_{bound}"],
        "quickstart",
    )
    if message is None:
        check_values(config)
    else:
        with pytest.raises(UserError, match=message):
            check_values(config)
