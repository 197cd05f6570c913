"""Masked statistics, masks and padding, by hand."""

import pytest
import torch
from tensordict import TensorDict

from verl.utils.model import compute_position_id_with_mask, create_random_mask
from verl.utils.torch_functional import (
    clip_by_value,
    compute_grad_norm,
    get_response_mask,
    masked_mean,
    masked_sum,
    masked_var,
    masked_whiten,
    pad_2d_list_to_length,
    pad_sequence_to_length,
    postprocess_data,
    split_dict_tensor_into_batches,
)

NAN = float("nan")


def test_masked_sum_and_mean_ignore_what_is_masked():
    values = torch.tensor([[1.0, 2.0, NAN], [4.0, torch.inf, 6.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 1]])
    assert masked_sum(values, mask) == 13  # 1 + 2 + 4 + 6
    assert masked_mean(values, mask) == 13 / 4
    assert masked_mean(values, mask, axis=1).tolist() == [1.5, 5.0]  # (1+2)/2, (4+6)/2


def test_masked_mean_shows_nan_inside_the_mask_and_is_zero_on_an_empty_one():
    assert masked_mean(torch.tensor([1.0, NAN]), torch.tensor([1, 1])).isnan()
    for dtype in (torch.bool, torch.int64, torch.float32):
        assert masked_mean(torch.tensor([1.0, 2.0]), torch.zeros(2, dtype=dtype)) == 0


def test_masked_var():
    values, mask = torch.tensor([1.0, 3.0, 5.0, 99.0]), torch.tensor([1, 1, 1, 0])
    # mean 3, squares 4 + 0 + 4 = 8: biased 8/3, unbiased 8/2
    assert masked_var(values, mask, unbiased=False) == pytest.approx(8 / 3)
    assert masked_var(values, mask) == pytest.approx(4.0)


@pytest.mark.parametrize(("mask", "count"), [([0, 0], 0), ([1, 0], 1)])
def test_unbiased_variance_needs_two_elements(mask, count):
    with pytest.raises(ValueError, match=rf"{count} element\(s\) and an unbiased variance needs"):
        masked_var(torch.tensor([1.0, 2.0]), torch.tensor(mask))


def test_masked_whiten():
    values, mask = torch.tensor([1.0, 3.0, 5.0, 99.0]), torch.tensor([1, 1, 1, 0])
    # mean 3, unbiased variance 4: (1-3)/2, (3-3)/2, (5-3)/2
    assert masked_whiten(values, mask)[:3].tolist() == pytest.approx([-1, 0, 1])
    assert masked_whiten(values, mask, shift_mean=False)[:3].tolist() == pytest.approx([2, 3, 4])


def test_clip_by_value_is_per_element():
    clipped = clip_by_value(
        torch.tensor([0.0, 5.0, 9.0]), torch.tensor([1.0, 1.0, 1.0]), torch.tensor([4.0, 6.0, 8.0])
    )
    assert clipped.tolist() == [1, 5, 8]


def test_compute_grad_norm():
    model = torch.nn.Linear(2, 1)
    assert compute_grad_norm(model) == 0
    model.weight.grad, model.bias.grad = torch.tensor([[2.0, 3.0]]), torch.tensor([6.0])
    assert compute_grad_norm(model) == pytest.approx(7.0)  # sqrt(4 + 9 + 36)


@pytest.mark.parametrize("eos", [2, [2, 7]])
def test_response_mask_includes_the_first_eos(eos):
    ids = torch.tensor([[5, 2, 6, 2], [5, 5, 5, 5], [2, 2, 0, 0]])
    assert get_response_mask(ids, eos).tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
    assert get_response_mask(ids, eos, dtype=torch.bool).dtype == torch.bool


def test_response_mask_with_several_eos_tokens():
    assert get_response_mask(torch.tensor([[5, 7, 2, 5]]), [2, 7]).tolist() == [[1, 1, 0, 0]]


def test_pad_2d_list_to_length():
    assert pad_2d_list_to_length([[1, 2], [3]], 0).tolist() == [[1, 2], [3, 0]]
    assert pad_2d_list_to_length([[1, 2], [3]], 0, max_length=3).tolist() == [[1, 2, 0], [3, 0, 0]]
    assert pad_2d_list_to_length([[1, 2], [3]], 0, max_length=1).shape == (2, 2)


def test_pad_sequence_to_length():
    ids = torch.tensor([[1, 2]])
    assert pad_sequence_to_length(ids, 4, 9).tolist() == [[1, 2, 9, 9]]
    assert pad_sequence_to_length(ids, 4, 9, left_pad=True).tolist() == [[9, 9, 1, 2]]
    assert pad_sequence_to_length(ids, 2, 9) is ids


@pytest.mark.parametrize(
    ("truncation", "kept"),
    [("left", [3, 4, 5]), ("right", [1, 2, 3]), ("middle", [1, 4, 5])],
)
def test_postprocess_data_truncates(truncation, kept):
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    short, mask = postprocess_data(ids, torch.ones_like(ids), 3, 0, truncation=truncation)
    assert short.tolist() == [kept] and mask.tolist() == [[1, 1, 1]]


def test_postprocess_data_pads_and_refuses():
    ids = torch.tensor([[1, 2]])
    padded, mask = postprocess_data(ids, torch.ones_like(ids), 3, pad_token_id=9)
    assert padded.tolist() == [[9, 1, 2]] and mask.tolist() == [[0, 1, 1]]
    with pytest.raises(NotImplementedError, match="sequence_length=2 is larger than max_length=1"):
        postprocess_data(ids, torch.ones_like(ids), 1, 9)
    with pytest.raises(AssertionError, match="truncation='up' is unknown"):
        postprocess_data(ids, torch.ones_like(ids), 1, 9, truncation="up")


def test_split_dict_tensor_into_batches():
    batch = TensorDict({"a": torch.arange(6)}, batch_size=[6])
    parts = split_dict_tensor_into_batches(batch, 2)
    assert [part["a"].tolist() for part in parts] == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(AssertionError, match="batch_size=4 must divide the 6 rows"):
        split_dict_tensor_into_batches(batch, 4)


def test_position_ids_start_at_the_first_token():
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])
    assert compute_position_id_with_mask(mask).tolist() == [[0, 0, 0, 1], [0, 1, 2, 2]]


def test_random_mask_is_one_run_of_the_asked_length():
    ids = torch.zeros(200, 50)
    mask = create_random_mask(ids, 0.8, 0.2, min_ratio_of_valid_token=0.4)
    lengths = mask.sum(1)
    assert lengths.min() >= 20 and lengths.max() <= 40  # 0.4 * 50, 0.8 * 50
    assert mask.argmax(1).max() <= 10  # 0.2 * 50
    # One run: the mask falls from 1 to 0 at most once.
    assert ((mask[:, :-1] - mask[:, 1:]) == 1).sum(1).max() <= 1
    with pytest.raises(ValueError, match="exceed the row"):
        create_random_mask(ids, 0.8, 0.3)
    with pytest.raises(ValueError, match="must be ordered"):
        create_random_mask(ids, 0.4, 0.1, min_ratio_of_valid_token=0.5)
