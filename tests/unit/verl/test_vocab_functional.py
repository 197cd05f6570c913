"""Log-probabilities and entropy: by hand, against the definition, values and gradients."""

import math

import pytest
import torch

from verl.utils import vocab_functional
from verl.utils.torch_functional import (
    entropy_from_logits,
    entropy_from_logits_with_chunking,
    log_probs_from_logits_response,
    logprobs_from_logits,
    logprobs_from_logits_naive,
    logprobs_from_logits_v2,
)


def test_two_tokens_by_hand():
    # softmax([ln 3, 0]) = [3/4, 1/4]
    logits = torch.tensor([[math.log(3.0), 0.0]])
    assert logprobs_from_logits(logits, torch.tensor([0])).item() == pytest.approx(math.log(0.75))
    # H = 3/4 ln(4/3) + 1/4 ln 4 = 0.2158 + 0.3466
    expected = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)
    assert entropy_from_logits(logits).item() == pytest.approx(expected)


def test_uniform_entropy_is_log_of_the_vocabulary():
    assert entropy_from_logits(torch.full((2, 3, 16), 5.0)).allclose(torch.tensor(math.log(16)))


@pytest.mark.parametrize("chunk", [1, 4, 1000])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
class TestAgainstTheDefinition:
    @pytest.fixture
    def logits(self, dtype, chunk, monkeypatch):
        monkeypatch.setattr(vocab_functional, "_CHUNK_TOKENS", chunk)
        torch.manual_seed(0)
        return (torch.randn(3, 5, 40) * 4).to(dtype).requires_grad_()

    def check(self, actual, expected, logits, dtype):
        assert actual.shape == (3, 5)
        assert actual.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(actual, expected)
        weights = torch.randn(3, 5)
        (grad,) = torch.autograd.grad((actual * weights).sum(), logits)
        (expected_grad,) = torch.autograd.grad((expected * weights).sum(), logits)
        assert grad.dtype == dtype
        torch.testing.assert_close(grad, expected_grad)

    def test_logprobs(self, logits, dtype, chunk):
        labels = torch.randint(0, 40, (3, 5))
        actual = logprobs_from_logits_v2(logits, labels)
        self.check(actual, logprobs_from_logits_naive(logits, labels), logits, dtype)

    def test_entropy(self, logits, dtype, chunk):
        actual = entropy_from_logits_with_chunking(logits, chunk_size=chunk)
        self.check(actual, entropy_from_logits(logits), logits, dtype)


def test_gradients_are_those_of_finite_differences():
    logits = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 5, 2, 2])
    assert torch.autograd.gradcheck(lambda z: logprobs_from_logits_v2(z, labels), logits)
    assert torch.autograd.gradcheck(lambda z: entropy_from_logits_with_chunking(z, 3), logits)


def test_large_logits_stay_finite():
    logits = torch.tensor([[1e4, 0.0, -1e4]])
    assert entropy_from_logits_with_chunking(logits).item() == 0
    assert logprobs_from_logits(logits, torch.tensor([1])).item() == -1e4


def test_response_log_probs_are_shifted_by_one():
    ids, logits = torch.randint(0, 7, (2, 5)), torch.randn(2, 5, 7)
    actual = log_probs_from_logits_response(ids, logits, response_length=2)
    # Tokens 3 and 4 are predicted at positions 2 and 3.
    expected = torch.log_softmax(logits, -1)[:, [2, 3]].gather(-1, ids[:, 3:, None]).squeeze(-1)
    torch.testing.assert_close(actual, expected)
