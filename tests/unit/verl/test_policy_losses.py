import math
from types import SimpleNamespace

import pytest
import torch

from verl.algorithms.aggregation import LOSS_AGG_MODES, loss_normalizers
from verl.algorithms.policy_losses import (
    POLICY_LOSSES,
    ClipRange,
    cispo_loss,
    compute_policy_loss,
    compute_value_loss,
    geo_mean_loss,
    gspo_loss,
    ppo_clip_loss,
    value_loss,
)
from verl.trainer.ppo.core_algos import (
    compute_policy_loss_gpg,
    compute_policy_loss_vanilla,
    get_policy_loss_fn,
)

CLIP = ClipRange(0.2, 0.2)
CONFIG = SimpleNamespace(
    clip_ratio=0.2, clip_ratio_low=None, clip_ratio_high=None, clip_ratio_c=3.0
)


def log(*values):
    return torch.tensor([[math.log(v) for v in values]])


def ppo(ratio, advantage, clip=CLIP, c=3.0):
    """The loss and the metrics of one token with old probability 0.1."""
    loss = ppo_clip_loss(
        log(0.1), log(0.1 * ratio), torch.tensor([[advantage]]), clip=clip, clip_ratio_c=c
    )
    return loss.loss_BT.item(), {name: x.item() for name, x in loss.metrics.items()}


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "clipped", "clipped_lower"),
    [
        (1.1, 2.0, -2.2, False, False),  # inside: -2 * 1.1
        (1.5, 2.0, -2.4, True, False),  # above, A > 0: -2 * 1.2
        (0.5, 2.0, -1.0, False, False),  # below, A > 0: the pessimistic side is unclipped, -2 * 0.5
        (0.5, -2.0, 1.6, True, False),  # below, A < 0: 2 * 0.8
        (1.5, -2.0, 3.0, False, False),  # above, A < 0: unclipped, 2 * 1.5
        (5.0, -2.0, 6.0, False, True),  # dual clip: 2 * 3, not 2 * 5
    ],
)
def test_ppo_clip_by_hand(ratio, advantage, expected, clipped, clipped_lower):
    loss, metrics = ppo(ratio, advantage)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert metrics["actor/pg_clipfrac"] == clipped
    assert metrics["actor/pg_clipfrac_lower"] == clipped_lower
    assert metrics["actor/ppo_kl"] == pytest.approx(-math.log(ratio), rel=1e-4)


def test_clip_ranges_are_separate():
    assert ppo(2.0, 1.0, ClipRange(0.1, 0.3))[0] == pytest.approx(-1.3)
    assert ppo(0.1, -1.0, ClipRange(0.1, 0.3))[0] == pytest.approx(0.9)
    low_only = SimpleNamespace(clip_ratio=0.2, clip_ratio_low=0.1, clip_ratio_high=None)
    assert ClipRange.of(low_only) == (0.1, 0.2)
    assert ClipRange.of(None) == (0.2, 0.2)


def test_extreme_ratios_stay_finite():
    loss = ppo_clip_loss(
        torch.tensor([[-200.0]]), torch.tensor([[0.0]]), torch.tensor([[-1.0]]), clip=CLIP
    )
    assert loss.loss_BT.item() == 3.0


def test_dual_clip_below_one_is_refused():
    with pytest.raises(ValueError, match=r"clip_ratio_c=1.0 .* larger than 1.0"):
        ppo(1.0, 1.0, c=1.0)


def test_compute_policy_loss_returns_four_numbers():
    old = log(0.1, 0.1, 0.1)
    new = log(0.15, 0.05, 0.9)
    advantages = torch.tensor([[2.0, -2.0, 5.0]])
    mask = torch.tensor([[1, 1, 0]])
    loss, clipfrac, kl, lower = compute_policy_loss(old, new, advantages, mask, cliprange=0.2)
    assert loss.item() == pytest.approx((-2.4 + 1.6) / 2)
    assert clipfrac.item() == 1.0
    assert kl.item() == pytest.approx(-(math.log(1.5) + math.log(0.5)) / 2)
    assert lower.item() == 0.0


def test_vanilla_equals_the_four_number_form_and_weighs_by_importance():
    torch.manual_seed(0)
    old, new, advantages = (torch.randn(4, 6) for _ in range(3))
    mask = torch.rand(4, 6) < 0.7
    expected = compute_policy_loss(old, new, advantages, mask, cliprange=0.2)
    loss, metrics = compute_policy_loss_vanilla(old, new, advantages, mask, "token-mean", CONFIG)
    assert loss.item() == pytest.approx(expected[0].item())
    assert metrics == pytest.approx(
        {
            "actor/pg_clipfrac": expected[1].item(),
            "actor/ppo_kl": expected[2].item(),
            "actor/pg_clipfrac_lower": expected[3].item(),
        }
    )
    weights = torch.full_like(old, 0.5)
    halved, _ = compute_policy_loss_vanilla(
        old, new, advantages, mask, "token-mean", CONFIG, weights
    )
    assert halved.item() == pytest.approx(loss.item() / 2)


@pytest.mark.parametrize("name", sorted(POLICY_LOSSES))
@pytest.mark.parametrize("mode", LOSS_AGG_MODES)
def test_micro_batches_add_up_for_every_loss(name, mode):
    torch.manual_seed(1)
    old, new, advantages = (torch.randn(5, 4) for _ in range(3))
    mask = torch.rand(5, 4) < 0.6
    mask[2] = False  # a padding row
    fn = get_policy_loss_fn(name)
    whole, whole_metrics = fn(old, new, advantages, mask, mode, CONFIG)
    normalizers = loss_normalizers(mask)
    parts = [
        fn(old[i], new[i], advantages[i], mask[i], mode, CONFIG, **normalizers)
        for i in ([0, 3], [2], [1, 4])
    ]
    assert sum(loss for loss, _ in parts).item() == pytest.approx(whole.item(), abs=1e-6)
    for metric, value in whole_metrics.items():
        assert sum(metrics[metric] for _, metrics in parts) == pytest.approx(value, abs=1e-6)


def test_on_policy_gradient_is_the_policy_gradient():
    # at ratio 1 every surrogate has the gradient -A / tokens (geo_mean averages A over the row)
    old = torch.full((1, 2), -1.0)
    advantages, mask = torch.tensor([[2.0, 2.0]]), torch.ones(1, 2)
    for name in POLICY_LOSSES:
        log_prob = old.clone().requires_grad_(True)
        loss, _ = get_policy_loss_fn(name)(
            old, log_prob, advantages, mask, "seq-mean-token-mean", CONFIG
        )
        loss.backward()
        assert torch.allclose(log_prob.grad, torch.full((1, 2), -1.0)), name


def test_gspo_uses_one_ratio_a_row():
    # ratios 2 and 1/2: geometric mean 1, so nothing is clipped; the third token is masked
    old, new = log(0.1, 0.1, 0.1), log(0.2, 0.05, 0.9)
    loss = gspo_loss(old, new, torch.ones(1, 3), torch.tensor([[1, 1, 0]]), clip=CLIP)
    assert loss.loss_BT[0, :2].tolist() == pytest.approx([-1.0, -1.0])
    assert not loss.metrics["actor/pg_clipfrac"][0, :2].any()
    # ratios 2 and 2: geometric mean 2, clipped to 1.2
    loss = gspo_loss(
        old, log(0.2, 0.2, 0.9), torch.ones(1, 3), torch.tensor([[1, 1, 0]]), clip=CLIP
    )
    assert loss.loss_BT[0, :2].tolist() == pytest.approx([-1.2, -1.2])


def test_geo_mean_by_hand():
    # log-ratios log 2 -> clipped to 0.2, and -0.1: exp((0.2 - 0.1) / 2), times -A = -3
    old, new = torch.zeros(1, 3), torch.tensor([[math.log(2), -0.1, 9.0]])
    mask = torch.tensor([[1, 1, 0]])
    loss = geo_mean_loss(old, new, torch.full((1, 3), 3.0), mask, clip=CLIP)
    assert loss.loss_BT[0, 0].item() == pytest.approx(-3 * math.exp(0.05), rel=1e-5)
    assert loss.metrics["actor/pg_clipfrac"][0, :2].tolist() == [True, False]


def test_cispo_by_hand():
    # ratio 2 is clipped to 1.2 as a weight: loss -1.2 * A * log_prob, gradient -1.2 * A
    new = log(0.2).requires_grad_(True)
    loss = cispo_loss(log(0.1), new, torch.tensor([[2.0]]), clip=CLIP)
    assert loss.loss_BT.item() == pytest.approx(-1.2 * 2.0 * math.log(0.2), rel=1e-5)
    loss.loss_BT.sum().backward()
    assert new.grad.item() == pytest.approx(-2.4)


def test_gpg_by_hand():
    # -(2 * log 0.5) = 2 log 2
    loss, metrics = compute_policy_loss_gpg(
        log(0.1), log(0.5), torch.tensor([[2.0]]), torch.ones(1, 1)
    )
    assert loss.item() == pytest.approx(2 * math.log(2))
    assert metrics == {}


def test_value_loss_by_hand():
    predictions = torch.tensor([[1.0, 3.0, 9.0]])
    returns = torch.tensor([[2.0, 2.0, 0.0]])
    values = torch.tensor([[0.0, 2.5, 0.0]])
    # token 0: clipped to 0.5: max((1-2)^2, (0.5-2)^2) / 2 = 1.125, the clip is larger
    # token 1: within 2.5 +- 0.5: (3-2)^2 / 2 = 0.5; token 2 is masked
    mask = torch.tensor([[1, 1, 0]])
    assert value_loss(predictions, returns, values, 0.5).loss_BT[0, :2].tolist() == [1.125, 0.5]
    loss, clipfrac = compute_value_loss(predictions, returns, values, mask, 0.5)
    assert loss.item() == pytest.approx((1.125 + 0.5) / 2)
    assert clipfrac.item() == 0.5


def test_value_loss_micro_batches_add_up():
    torch.manual_seed(2)
    predictions, returns, values = (torch.randn(3, 4) for _ in range(3))
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
    whole = compute_value_loss(predictions, returns, values, mask, 0.2, "seq-mean-token-mean")
    normalizers = loss_normalizers(mask)
    parts = [
        compute_value_loss(
            predictions[i],
            returns[i],
            values[i],
            mask[i],
            0.2,
            "seq-mean-token-mean",
            **normalizers,
        )
        for i in ([0], [1, 2])
    ]
    for k in (0, 1):
        assert sum(part[k] for part in parts).item() == pytest.approx(whole[k].item(), abs=1e-6)


def test_unknown_loss_lists_the_names():
    with pytest.raises(ValueError, match=r"Unsupported loss mode: vanila; available: .*vanilla"):
        get_policy_loss_fn("vanila")
