"""Cutting rows into micro-batches."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from verl.config.model import MicroBatchConfig
from verl.utils.errors import UserError
from verl.workers.micro_batch import micro_batch_rows, sizes_by_tokens


def cut(lengths, config, active=None, packed=False):
    active_R = (
        torch.ones(len(lengths), dtype=torch.bool) if active is None else torch.tensor(active)
    )
    rows = micro_batch_rows(torch.tensor(lengths), active_R, config, packed=packed, group=None)
    return [part.tolist() for part in rows]


def test_rows_are_taken_longest_first():
    assert cut([3, 9, 5], MicroBatchConfig(micro_batch_size_per_gpu=2)) == [[1, 2], [0]]


def test_without_a_size_there_is_one_micro_batch():
    assert cut([3, 9, 5], MicroBatchConfig()) == [[1, 2, 0]]


def test_by_tokens_padding_counts_unless_packed():
    config = MicroBatchConfig(use_dynamic_bsz=True, max_token_len_per_gpu=12)
    # padded: 6 + 6 = 12, then 4, 4, 4 = 3 * 4 = 12; packed: 6 + 6, 4 + 4 + 4
    assert cut([6, 4, 6, 4, 4], config) == [[0, 2], [1, 3, 4]]
    # padded: 7 x 2 = 14 > 12, packed: 7 + 5 = 12
    assert cut([7, 5], config) == [[0], [1]]
    assert cut([7, 5], config, packed=True) == [[0, 1]]


def test_idle_rows_are_left_out():
    assert cut([3, 9, 5], MicroBatchConfig(), active=[True, False, True]) == [[2, 0]]


def test_an_idle_rank_has_one_empty_micro_batch():
    assert cut([3, 9], MicroBatchConfig(), active=[False, False]) == [[]]


def test_a_row_that_is_too_long_is_refused():
    config = MicroBatchConfig(use_dynamic_bsz=True, max_token_len_per_gpu=8)
    with pytest.raises(UserError, match="a row of 9 tokens does not fit max_token_len_per_gpu=8"):
        cut([3, 9], config)


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=40),
    limit=st.integers(50, 300),
    packed=st.booleans(),
)
def test_every_row_is_in_one_micro_batch_within_the_limit(lengths, limit, packed):
    config = MicroBatchConfig(use_dynamic_bsz=True, max_token_len_per_gpu=limit)
    parts = cut(lengths, config, packed=packed)
    assert sorted(row for part in parts for row in part) == list(range(len(lengths)))
    for part in parts:
        chosen = [lengths[row] for row in part]
        assert (sum(chosen) if packed else len(chosen) * max(chosen)) <= limit


def test_a_length_beyond_the_limit_stands_alone():
    assert sizes_by_tokens([20, 3, 3], 8, packed=True) == [1, 2]
