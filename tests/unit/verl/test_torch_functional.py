"""Masked statistics, by hand."""

import pytest
import torch

from verl.utils.torch_functional import masked_mean, masked_var, masked_whiten

NAN = float("nan")


def test_masked_mean_ignores_what_is_masked():
    values = torch.tensor([[1.0, 2.0, NAN], [4.0, torch.inf, 6.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 1]])
    assert masked_mean(values, mask) == 13 / 4  # 1 + 2 + 4 + 6


def test_masked_mean_shows_nan_inside_the_mask_and_is_zero_on_an_empty_one():
    assert masked_mean(torch.tensor([1.0, NAN]), torch.tensor([1, 1])).isnan()
    for dtype in (torch.bool, torch.int64, torch.float32):
        assert masked_mean(torch.tensor([1.0, 2.0]), torch.zeros(2, dtype=dtype)) == 0


def test_masked_var():
    values, mask = torch.tensor([1.0, 3.0, 5.0, 99.0]), torch.tensor([1, 1, 1, 0])
    # mean 3, squares 4 + 0 + 4 = 8, unbiased 8/2
    assert masked_var(values, mask) == pytest.approx(4.0)


@pytest.mark.parametrize(("mask", "count"), [([0, 0], 0), ([1, 0], 1)])
def test_a_variance_needs_two_elements(mask, count):
    with pytest.raises(ValueError, match=rf"{count} element\(s\) and a variance needs"):
        masked_var(torch.tensor([1.0, 2.0]), torch.tensor(mask))


def test_masked_whiten():
    values, mask = torch.tensor([1.0, 3.0, 5.0, 99.0]), torch.tensor([1, 1, 1, 0])
    # mean 3, unbiased variance 4: (1-3)/2, (3-3)/2, (5-3)/2
    assert masked_whiten(values, mask)[:3].tolist() == pytest.approx([-1, 0, 1])
