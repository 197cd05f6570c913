"""The loss term: its value by hand, its gradient, and that batching does not change it."""

import pickle
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from epo import EPOConfig, EPORegularizer

CONFIG = EPOConfig(entropy_coeff=0.5, kappa_l=0.8, kappa_r=1.2, alpha=0.1)


def context(reference=0.5, lower=0.4, upper=0.6, beta=2.0):
    return SimpleNamespace(
        state={"reference": reference, "lower": lower, "upper": upper, "beta": beta}
    )


NO_PAST = context(reference=None, lower=None, upper=None)

# One row, one trajectory. Turn 0 has 2 tokens, turn 1 one, the fourth position is padding.
# trajectory_weight: 1/(1*2*2) = 0.25, 0.25, 1/(1*2*1) = 0.5; token_weight: 1/3 each.
MASK = torch.tensor([[1, 1, 1, 0]])
COLUMNS = {
    "trajectory_weight": torch.tensor([[0.25, 0.25, 0.5, 0.0]], dtype=torch.float64),
    "token_weight": torch.tensor([[1 / 3, 1 / 3, 1 / 3, 0.0]], dtype=torch.float64),
    "turn_ids": torch.tensor([[0, 0, 1, -1]]),
}
ENTROPY = torch.tensor([[0.9, 0.5, 0.1, 7.0]], dtype=torch.float64)


def term(config=CONFIG, entropy=ENTROPY, state=None, columns=None):
    return EPORegularizer(config)(entropy, MASK, columns or COLUMNS, state or context())


def test_value_by_hand():
    loss, metrics = term()
    # L_H = 0.25*0.9 + 0.25*0.5 + 0.5*0.1 = 0.225 + 0.125 + 0.05 = 0.4
    # P: 0.9 -> 0.9-0.6 = 0.3, 0.5 -> 0, 0.1 -> 0.4-0.1 = 0.3
    # alpha*P of the first token = 0.1*0.3 = 0.03
    # L_smooth = 0.1 * (0.25*0.3 + 0.5*0.3) = 0.1 * 0.225 = 0.0225
    # loss = -0.5 * (0.4 - 2*0.0225) = -0.5 * 0.355 = -0.1775
    assert loss.item() == pytest.approx(-0.1775)
    expected = {
        "epo/entropy": 0.4,
        "epo/penalty": 0.0225,
        "epo/share_below": 0.5,  # the weight of the token at 0.1
        "epo/share_above": 0.25,  # the weight of the token at 0.9
        "epo/loss": -0.1775,
    }
    assert {name: float(value) for name, value in metrics.items()} == pytest.approx(expected)
    assert all(value.shape == () and not value.requires_grad for value in metrics.values())


def test_value_by_hand_with_token_mean():
    loss, _ = term(replace(CONFIG, aggregation="token_mean"))
    # L_H = (0.9+0.5+0.1)/3 = 0.5; L_smooth = 0.1*(0.3+0.3)/3 = 0.02; -0.5*(0.5 - 2*0.02) = -0.23
    assert loss.item() == pytest.approx(-0.23)


def test_gradient_by_hand():
    entropy = ENTROPY.clone().requires_grad_()
    loss, _ = term(entropy=entropy)
    loss.backward()
    # d/dH = -lambda * w * (1 - beta*alpha*dP), dP = +1 above, 0 inside, -1 below, 0 off the mask:
    # above: -0.5*0.25*(1-0.2) = -0.1; inside: -0.5*0.25 = -0.125; below: -0.5*0.5*(1+0.2) = -0.3
    expected = torch.tensor([[-0.1, -0.125, -0.3, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(entropy.grad, expected)


def test_gradient_agrees_with_finite_differences():
    entropy = ENTROPY.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda value: term(entropy=value)[0], (entropy,))


def test_gradient_reaches_the_logits():
    logits = torch.tensor([[[2.0, 0.0, -1.0], [0.1, 0.0, 0.0]]], requires_grad=True)
    log_p = logits.log_softmax(dim=-1)
    entropy = -(log_p.exp() * log_p).sum(dim=-1)  # about 0.5 and 1.1
    columns = {
        "trajectory_weight": torch.full((1, 2), 0.5),
        "turn_ids": torch.zeros(1, 2, dtype=int),
    }
    # alpha*beta = 10 > 1: above the corridor the penalty outweighs the bonus
    regularizer = EPORegularizer(replace(CONFIG, alpha=5.0))
    loss, _ = regularizer(entropy, torch.ones(1, 2), columns, context(lower=0.7, upper=0.8))
    loss.backward()
    below, above = logits.grad[0, 0], logits.grad[0, 1]
    assert below[0] > 0  # descending lowers the largest logit: flatter
    assert above[0] < 0  # descending raises the largest logit: sharper


def test_indicator_trains_like_the_plain_bonus():
    entropy = ENTROPY.clone().requires_grad_()
    loss, metrics = term(replace(CONFIG, penalty="indicator"), entropy)
    loss.backward()
    # -lambda * w, as if there were no penalty
    expected = -0.5 * COLUMNS["trajectory_weight"]
    torch.testing.assert_close(entropy.grad, expected)
    # L_smooth = 0.1 * (0.25*1 + 0.5*1) = 0.075; loss = -0.5*(0.4 - 2*0.075) = -0.125
    assert float(metrics["epo/penalty"]) == pytest.approx(0.075)
    assert loss.item() == pytest.approx(-0.125)


def test_without_a_past_only_the_bonus_acts():
    entropy = ENTROPY.clone().requires_grad_()
    loss, metrics = term(entropy=entropy, state=NO_PAST)
    assert loss.item() == pytest.approx(-0.2)  # -0.5 * 0.4
    assert set(metrics) == set(term()[1])  # ranks and steps report the same metrics
    for name in ("epo/penalty", "epo/share_below", "epo/share_above"):
        assert float(metrics[name]) == 0.0
    loss.backward()
    torch.testing.assert_close(entropy.grad, -0.5 * COLUMNS["trajectory_weight"])


def test_from_turn_spares_earlier_turns_from_the_penalty_only():
    loss, metrics = term(replace(CONFIG, from_turn=1))
    # L_H stays 0.4; only turn 1 pays: 0.1*0.5*0.3 = 0.015; -0.5*(0.4 - 2*0.015) = -0.185
    assert loss.item() == pytest.approx(-0.185)
    assert float(metrics["epo/entropy"]) == pytest.approx(0.4)
    assert float(metrics["epo/share_above"]) == 0.0  # the token at 0.9 belongs to turn 0
    assert float(metrics["epo/share_below"]) == 0.5


def test_every_turn_has_its_own_corridor():
    state = context(reference=(0.9, 0.1, 0.5), lower=(0.8, 0.0, 0.4), upper=(1.0, 0.2, 0.6))
    _, metrics = term(state=state)
    # turn 0 in [0.8, 1.0]: 0.9 -> 0, 0.5 -> 0.3, turn 1 in [0, 0.2]: 0.1 -> 0
    # L_smooth = 0.1*0.25*0.3 = 0.0075
    assert float(metrics["epo/penalty"]) == pytest.approx(0.0075)
    assert float(metrics["epo/share_below"]) == 0.25


def test_masked_positions_may_hold_anything():
    entropy = ENTROPY.clone()
    entropy[0, 3] = float("nan")
    columns = COLUMNS | {"trajectory_weight": torch.tensor([[0.25, 0.25, 0.5, float("nan")]])}
    assert float(term(entropy=entropy, columns=columns)[0]) == pytest.approx(-0.1775)


def test_a_micro_batch_of_padding_is_zero_and_can_run_backward():
    entropy = torch.rand(2, 3, requires_grad=True)
    columns = {"trajectory_weight": torch.zeros(2, 3), "turn_ids": torch.full((2, 3), -1)}
    loss, _ = EPORegularizer(CONFIG)(entropy, torch.zeros(2, 3), columns, context())
    loss.backward()
    assert loss.item() == 0.0
    assert entropy.grad.tolist() == [[0.0] * 3] * 2


def test_low_precision_entropy_is_compared_in_single_precision():
    loss, _ = term(entropy=ENTROPY.bfloat16())
    assert loss.dtype == torch.float64  # the weights' precision
    assert loss.item() == pytest.approx(-0.1775, abs=2e-3)


@settings(max_examples=40)
@given(
    cuts=st.lists(st.integers(0, 8), max_size=4),
    seed=st.integers(0, 1000),
    per_turn=st.booleans(),
    config=st.sampled_from(
        [CONFIG, replace(CONFIG, penalty="indicator"), replace(CONFIG, from_turn=2)]
    ),
)
def test_any_partition_adds_up_to_the_whole(cuts, seed, per_turn, config):
    generator = torch.Generator().manual_seed(seed)
    entropy = torch.rand(8, 5, generator=generator, dtype=torch.float64).requires_grad_()
    mask = torch.rand(8, 5, generator=generator) < 0.7
    turn = torch.where(mask, torch.randint(0, 4, (8, 5), generator=generator), -1)
    weight = torch.rand(8, 5, generator=generator, dtype=torch.float64) * mask
    columns = {"trajectory_weight": weight, "turn_ids": turn}
    levels = (0.3, 0.4, 0.5) if per_turn else 0.4
    state = context(levels, levels, tuple(2 * x for x in levels) if per_turn else 0.6)
    regularizer = EPORegularizer(config)

    whole, whole_metrics = regularizer(entropy, mask, columns, state)
    whole_grad = torch.autograd.grad(whole, entropy)[0]
    edges = [0, *sorted(cuts), 8]
    parts = [
        regularizer(entropy[a:b], mask[a:b], {k: v[a:b] for k, v in columns.items()}, state)
        for a, b in pairwise(edges)
    ]
    total = sum(loss for loss, _ in parts)
    torch.testing.assert_close(total, whole)
    torch.testing.assert_close(torch.autograd.grad(total, entropy)[0], whole_grad)
    for name, value in whole_metrics.items():
        torch.testing.assert_close(sum(metrics[name] for _, metrics in parts), value)


@pytest.mark.parametrize(
    ("aggregation", "column"), [("trajectory", "trajectory_weight"), ("token_mean", "token_weight")]
)
def test_names_the_columns_it_needs_and_travels_to_workers(aggregation, column):
    regularizer = pickle.loads(
        pickle.dumps(EPORegularizer(replace(CONFIG, aggregation=aggregation)))
    )
    assert regularizer.required_columns == (column, "turn_ids")
    columns = {name: COLUMNS[name] for name in regularizer.required_columns}
    assert torch.isfinite(regularizer(ENTROPY, MASK, columns, context())[0])
