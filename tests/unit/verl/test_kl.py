import math
from types import SimpleNamespace

import pytest
import torch

from verl.algorithms.kl import (
    AdaptiveKLController,
    FixedKLController,
    full_kl,
    get_kl_controller,
    kl_in_reward,
    kl_penalty,
)

P = torch.tensor([math.log(0.5), math.log(0.2)])
Q = torch.tensor([math.log(0.25), math.log(0.4)])
LN2 = math.log(2)


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (("kl", "k1"), [LN2, -LN2]),  # log(p/q): log 2, log 1/2
        (("abs",), [LN2, LN2]),
        (("mse", "k2"), [LN2**2 / 2, LN2**2 / 2]),
        (("low_var_kl", "k3"), [0.5 + LN2 - 1, 2 - LN2 - 1]),  # q/p - log(q/p) - 1
    ],
)
def test_estimators_by_hand(kinds, expected):
    for kind in kinds:
        assert kl_penalty(P, Q, kind).tolist() == pytest.approx(expected, rel=1e-5)


def test_low_var_kl_is_bounded_and_exact_near_zero():
    far = kl_penalty(torch.tensor([-100.0]), torch.tensor([0.0]), "k3")
    assert far.item() == 10.0
    # d = 1e-4: exp(-d) + d - 1 = d^2/2 - ... = 5e-9, which exp() in float32 would lose
    d = torch.tensor([1e-4])
    near = kl_penalty(d, torch.zeros(1), "k3")
    assert near.item() == pytest.approx(5e-9, rel=0.05)


@pytest.mark.parametrize("kind", ["k1", "abs", "k3", "low_var_kl", "k2"])
def test_plus_keeps_the_value_and_takes_the_gradient_of_k2(kind):
    logprob = P.clone().requires_grad_(True)
    value = kl_penalty(logprob, Q, kind + "+")
    assert torch.allclose(value, kl_penalty(P, Q, kind))
    value.sum().backward()
    assert torch.allclose(logprob.grad, P - Q)  # d/dp of (p - q)^2 / 2


def test_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match="full_kl"):
        kl_penalty(P, Q, "full")
    with pytest.raises(ValueError, match="unknown kl_penalty 'k4'; available: kl, k1"):
        kl_penalty(P, Q, "k4")


def test_full_kl_by_hand():
    # p = (1/2, 1/2), q = (3/4, 1/4): 0.5*ln(2/3) + 0.5*ln(2) = 0.5*ln(4/3)
    p, q = torch.tensor([[[0.0, 0.0]]]), torch.tensor([[[math.log(3.0), 0.0]]])
    assert full_kl(p, q).item() == pytest.approx(0.5 * math.log(4 / 3), rel=1e-5)
    assert full_kl(q, q).item() == pytest.approx(0.0, abs=1e-7)


def test_kl_in_reward_by_hand():
    scores = torch.tensor([[0.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    old = torch.tensor([[-1.0, -1.0], [-1.0, -9.0], [-9.0, -9.0]])
    ref = torch.tensor([[-2.0, -3.0], [-4.0, 0.0], [0.0, 0.0]])
    mask = torch.tensor([[1, 1], [1, 0], [0, 0]])
    result = kl_in_reward(scores, old, ref, mask, coef=0.1, kind="k1")
    # k1 under the mask: [1, 2], [3, -], [-, -]
    expected = torch.tensor([[-0.1, 0.8], [-0.3, 0.0], [0.0, 0.0]])
    assert torch.allclose(result.rewards_BT, expected)
    assert result.mean_kl.item() == pytest.approx((1.5 + 3.0) / 2)  # the padding row does not count


def test_adaptive_controller_by_hand():
    controller = AdaptiveKLController(init_kl_coef=0.1, target_kl=0.2, horizon=100)
    controller.update(current_kl=0.22, n_steps=10)  # error 0.1: 0.1 * (1 + 0.1*10/100) = 0.101
    assert controller.value == pytest.approx(0.101)
    controller.update(current_kl=100.0, n_steps=10)  # clipped to 0.2: 0.101 * 1.02
    assert controller.value == pytest.approx(0.101 * 1.02)
    controller.update(current_kl=0.0, n_steps=10)  # clipped to -0.2: * 0.98
    assert controller.value == pytest.approx(0.101 * 1.02 * 0.98)


def test_controller_state_survives_a_restart():
    controller = AdaptiveKLController(0.1, 0.2, 100)
    controller.update(1.0, 50)
    resumed = AdaptiveKLController(0.1, 0.2, 100)
    resumed.load_state_dict(controller.state_dict())
    controller.update(0.1, 50)
    resumed.update(0.1, 50)
    assert resumed.value == controller.value != 0.1


def test_get_kl_controller():
    fixed = get_kl_controller(SimpleNamespace(type="fixed", kl_coef=0.3))
    assert isinstance(fixed, FixedKLController)
    fixed.update(99.0, 99)
    assert fixed.value == 0.3
    adaptive = get_kl_controller(
        SimpleNamespace(type="adaptive", kl_coef=0.3, horizon=10, target_kl=0.5)
    )
    assert (adaptive.value, adaptive.target, adaptive.horizon) == (0.3, 0.5, 10)
    with pytest.raises(
        ValueError, match=r"unknown kl_ctrl\.type 'pid'; available: adaptive, fixed"
    ):
        get_kl_controller(SimpleNamespace(type="pid", kl_coef=0.3))
    for bad in ({"horizon": 0, "target_kl": 0.1}, {"horizon": 10, "target_kl": 0.0}):
        with pytest.raises(ValueError, match="must be larger than 0"):
            get_kl_controller(SimpleNamespace(type="adaptive", kl_coef=0.3, **bad))
