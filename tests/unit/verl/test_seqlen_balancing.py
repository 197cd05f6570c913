"""Balanced partitions."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verl.utils.seqlen_balancing import (
    get_seqlen_balanced_partitions,
    karmarkar_karp,
)

few = settings(max_examples=60)


def test_karmarkar_karp_by_hand():
    # Differencing {4,5,6,7,8} in two: 8-7=1, 6-5=1, 4-1=3, 3-1=2, so the sums are 16 and 14.
    lengths = [4, 5, 6, 7, 8]
    sums = sorted(sum(lengths[i] for i in part) for part in karmarkar_karp(lengths, 2, False))
    assert sums == [14, 16]


@few
@given(data=st.data())
def test_every_index_once_and_equal_sizes(data):
    k = data.draw(st.integers(1, 5))
    lengths = data.draw(
        st.lists(st.integers(0, 100), min_size=k, max_size=6 * k).filter(lambda x: len(x) % k == 0)
    )
    for equal_size in (False, True):
        parts = karmarkar_karp(lengths, k, equal_size)
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
