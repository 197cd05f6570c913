"""Bounds and penalties, with their gradients."""

import pytest
import torch

from epo.corridor import corridor_around, indicator_penalty, level_of_tokens, relu_penalty

ENTROPY = [0.1, 0.4, 0.5, 0.6, 0.9]


def test_bounds():
    corridor = corridor_around(0.5, kappa_l=0.8, kappa_r=1.2)
    assert (corridor.reference, corridor.lower) == (0.5, 0.4)  # 0.8 * 0.5
    assert corridor.upper == pytest.approx(0.6)  # 1.2 * 0.5


def test_bounds_of_every_turn():
    corridor = corridor_around((0.5, 1.0), kappa_l=0.5, kappa_r=2.0)
    assert corridor.lower == (0.25, 0.5)
    assert corridor.upper == (1.0, 2.0)


def test_level_of_tokens():
    turn_BT = torch.tensor([[0, 0, 1, -1], [2, 3, 9, -1]])
    level = level_of_tokens((0.1, 0.2, 0.3), turn_BT, torch.float64)
    # turns 2, 3 and 9 share the last entry
    expected = [[0.1, 0.1, 0.2], [0.3, 0.3, 0.3]]
    assert level[:, :3].tolist() == expected
    assert level_of_tokens(0.7, turn_BT, torch.float64) == 0.7


def test_relu_penalty_is_the_distance():
    penalty = relu_penalty(torch.tensor(ENTROPY), 0.4, 0.6)
    # below: 0.4-0.1 = 0.3; on the edges and inside 0; above: 0.9-0.6 = 0.3
    torch.testing.assert_close(penalty, torch.tensor([0.3, 0.0, 0.0, 0.0, 0.3]))


def test_relu_penalty_pushes_back_inside():
    entropy = torch.tensor([0.1, 0.5, 0.9], requires_grad=True)
    relu_penalty(entropy, 0.4, 0.6).sum().backward()
    # minimising the penalty raises an entropy below the corridor and lowers one above it
    assert entropy.grad.tolist() == [-1.0, 0.0, 1.0]


def test_indicator_penalty_is_a_constant_without_gradient():
    entropy = torch.tensor(ENTROPY, requires_grad=True)
    penalty = indicator_penalty(entropy, 0.4, 0.6)
    assert penalty.tolist() == [1.0, 0.0, 0.0, 0.0, 1.0]
    assert not penalty.requires_grad
