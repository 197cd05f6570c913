"""Log-prob and entropy from one set of logits, against hand-made numbers and autograd."""

import math

import pytest
import torch

from verl.workers import token_statistics as module
from verl.workers.token_statistics import token_statistics


def reference(logits, target, temperature):
    """The definitions in float64, by autograd."""
    log_p = torch.log_softmax(logits.double() / temperature, dim=-1)
    log_prob = log_p.gather(-1, target[:, None]).squeeze(-1)
    return log_prob, -(log_p.exp() * log_p).sum(-1)


def test_hand_computed():
    # softmax([0, ln 3]) = [1/4, 3/4]: log p = ln 0.75, H = 0.25 ln 4 + 0.75 ln(4/3)
    logits = torch.tensor([[0.0, math.log(3.0)]])
    result = token_statistics(logits, torch.tensor([1]))
    assert result.log_prob_N.item() == pytest.approx(math.log(0.75), abs=1e-6)
    entropy = 0.25 * math.log(4) + 0.75 * math.log(4 / 3)
    assert result.entropy_N.item() == pytest.approx(entropy, abs=1e-6)


def test_temperature_divides_the_logits():
    # temperature 0.5 doubles the logits: softmax([0, 2 ln 3]) = [1/10, 9/10]
    logits = torch.tensor([[0.0, math.log(3.0)]])
    result = token_statistics(logits, torch.tensor([0]), temperature=0.5)
    assert result.log_prob_N.item() == pytest.approx(math.log(0.1), abs=1e-6)


@pytest.mark.parametrize("slice_elements", [1 << 25, 40])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_values_and_gradients_equal_autograd(monkeypatch, slice_elements, temperature):
    monkeypatch.setattr(module, "SLICE_ELEMENTS", slice_elements)  # 40: two tokens a slice
    torch.manual_seed(0)
    logits = (3 * torch.randn(7, 19)).requires_grad_()
    target = torch.randint(0, 19, (7,))
    weight_a, weight_b = torch.randn(2, 7)

    got = token_statistics(logits, target, temperature)
    (got_grad,) = torch.autograd.grad((weight_a * got[0] + weight_b * got[1]).sum(), logits)
    want = reference(logits, target, temperature)
    (want_grad,) = torch.autograd.grad((weight_a * want[0] + weight_b * want[1]).sum(), logits)

    for value, expected in zip(got, want, strict=True):
        torch.testing.assert_close(value.double(), expected, atol=2e-6, rtol=1e-6)
    torch.testing.assert_close(got_grad, want_grad, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("which", [0, 1])
def test_one_of_the_two_alone_has_its_own_gradient(which):
    torch.manual_seed(1)
    logits = torch.randn(5, 11, requires_grad=True)
    target = torch.randint(0, 11, (5,))
    (got,) = torch.autograd.grad(token_statistics(logits, target)[which].sum(), logits)
    (want,) = torch.autograd.grad(reference(logits, target, 1.0)[which].sum(), logits)
    torch.testing.assert_close(got, want.float(), atol=1e-6, rtol=1e-5)


def test_impossible_words_are_not_nan():
    # two words possible, equally: H = ln 2
    logits = torch.tensor([[0.0, -math.inf, 0.0]], requires_grad=True)
    result = token_statistics(logits, torch.tensor([0]))
    assert result.entropy_N.item() == pytest.approx(math.log(2), abs=1e-6)
    (result.log_prob_N + result.entropy_N).sum().backward()
    assert torch.isfinite(logits.grad).all()


def test_half_precision_logits_are_worked_on_in_float32():
    torch.manual_seed(2)
    logits = torch.randn(4, 33).bfloat16()
    target = torch.randint(0, 33, (4,))
    got = token_statistics(logits, target)
    want = reference(logits.float(), target, 1.0)
    assert got.log_prob_N.dtype == torch.float32
    torch.testing.assert_close(got.log_prob_N, want[0].float(), atol=2e-6, rtol=0)
