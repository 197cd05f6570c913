"""Balanced partitions and micro-batches."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verl import DataProto
from verl.utils.seqlen_balancing import (
    calculate_workload,
    ceildiv,
    get_group_balanced_partitions,
    get_reverse_idx,
    get_seqlen_balanced_partitions,
    greedy_partition,
    karmarkar_karp,
    log_seqlen_unbalance,
    prepare_dynamic_batch,
    rearrange_micro_batches,
    restore_dynamic_batch,
    roundup_divisible,
)

few = settings(max_examples=60, deadline=None)


def test_arithmetic():
    assert [ceildiv(a, 3) for a in (0, 1, 3, 4)] == [0, 1, 1, 2]
    assert [roundup_divisible(a, 4) for a in (1, 4, 5)] == [4, 4, 8]
    # 6 * 4096 = 24576; 24576 * 2 + 2^2
    assert calculate_workload(torch.tensor([0, 2])).tolist() == [0, 49156]


def test_karmarkar_karp_by_hand():
    # Differencing {4,5,6,7,8} in two: 8-7=1, 6-5=1, 4-1=3, 3-1=2, so the sums are 16 and 14.
    lengths = [4, 5, 6, 7, 8]
    sums = sorted(sum(lengths[i] for i in part) for part in karmarkar_karp(lengths, 2, False))
    assert sums == [14, 16]


@pytest.mark.parametrize("partition", [karmarkar_karp, greedy_partition])
@few
@given(data=st.data())
def test_every_index_once_and_equal_sizes(partition, data):
    k = data.draw(st.integers(1, 5))
    lengths = data.draw(
        st.lists(st.integers(0, 100), min_size=k, max_size=6 * k).filter(lambda x: len(x) % k == 0)
    )
    for equal_size in (False, True):
        parts = partition(lengths, k, equal_size)
        assert len(parts) == k
        assert sorted(i for part in parts for i in part) == list(range(len(lengths)))
        if equal_size:
            assert {len(part) for part in parts} == {len(lengths) // k}


@few
@given(st.lists(st.integers(0, 100), min_size=3, max_size=30))
def test_no_partition_is_empty_and_the_spread_is_at_most_one_sequence(lengths):
    parts = get_seqlen_balanced_partitions(lengths, 3, equal_size=False)
    sums = [sum(lengths[i] for i in part) for part in parts]
    assert all(parts) and all(part == sorted(part) for part in parts)
    assert max(sums) - min(sums) <= max(lengths)


def test_impossible_partitions_are_refused():
    with pytest.raises(AssertionError, match="2 sequences cannot fill 3 partitions"):
        get_seqlen_balanced_partitions([1, 2], 3, equal_size=False)
    with pytest.raises(AssertionError, match="3 sequences do not fill 2 partitions of equal size"):
        get_seqlen_balanced_partitions([1, 2, 3], 2, equal_size=True)


def test_groups_stay_together():
    lengths, uids = [100, 10, 100, 10, 90, 90], ["a", "b", "a", "b", "c", "c"]
    # Groups a = 200, b = 20, c = 180: {a} and {b, c} are 200 each.
    assert sorted(get_group_balanced_partitions(lengths, uids, 2)) == [[0, 2], [1, 3, 4, 5]]


def test_unbalance_metrics():
    metrics = log_seqlen_unbalance([1, 2, 3, 4], [[0, 3], [1, 2]], prefix="seqlen")
    assert metrics == {
        "seqlen/min": 3,  # 1 + 2
        "seqlen/max": 7,  # 3 + 4
        "seqlen/minmax_diff": 4,
        "seqlen/balanced_min": 5,
        "seqlen/balanced_max": 5,
        "seqlen/mean": 5,
    }


def batch_of(lengths: list[int], width: int) -> DataProto:
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    columns = {"length": np.array(lengths)}
    tensors = {"attention_mask": mask, "row": torch.arange(len(lengths))}
    return DataProto.from_dict(tensors, columns, {"temperature": 1.0})


@few
@given(st.lists(st.integers(1, 10), min_size=1, max_size=30))
def test_dynamic_batches_hold_every_row_and_are_restored(lengths):
    data = batch_of(lengths, width=10)
    parts, index = prepare_dynamic_batch(data, max_token_len=25)
    assert len(parts) == min(len(lengths), ceildiv(sum(lengths), 25))
    for part in parts:
        assert (
            part.batch["attention_mask"].sum(1).tolist() == part.non_tensor_batch["length"].tolist()
        )
        assert part.meta_info == {"temperature": 1.0}
    loads = [sum(24576 * n + n**2 for n in part.non_tensor_batch["length"]) for part in parts]
    assert loads == sorted(loads, reverse=True)
    joined = torch.cat([part.batch["row"] for part in parts])
    assert restore_dynamic_batch(joined, index).tolist() == list(range(len(lengths)))


@pytest.mark.parametrize(
    ("options", "number"),
    [
        ({}, 2),  # 4 * 10 tokens / 20
        ({"min_num_micro_batch": 3}, 3),
        ({"num_batches_divided_by": 4}, 4),
        ({"max_token_len": 40}, 1),
    ],
)
def test_number_of_micro_batches(options, number):
    batch = batch_of([10, 10, 10, 10], width=10).batch
    parts, index = rearrange_micro_batches(batch, **{"max_token_len": 20, **options})
    assert len(parts) == len(index) == number


def test_limits_that_cannot_hold_are_refused():
    batch = batch_of([10, 10], width=10).batch
    with pytest.raises(AssertionError, match="max_token_len=9 is less than the sequence length 10"):
        rearrange_micro_batches(batch, max_token_len=9)
    with pytest.raises(AssertionError, match="2 sequences cannot fill 3"):
        rearrange_micro_batches(batch, max_token_len=10, min_num_micro_batch=3)


@given(st.permutations(range(7)))
def test_reverse_index(order):
    inverse = get_reverse_idx(order)
    assert [inverse[index] for index in order] == list(range(7))
