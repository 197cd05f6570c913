"""Sharing out sequences of unequal length over data-parallel ranks."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import count


def _check_equal_size(seqlen_list: Sequence[int], k_partitions: int) -> None:
    assert len(seqlen_list) % k_partitions == 0, (
        f"{len(seqlen_list)} sequences do not fill {k_partitions} partitions of equal size"
    )


def karmarkar_karp(
    seqlen_list: Sequence[int], k_partitions: int, equal_size: bool
) -> list[list[int]]:
    """Largest differencing method (Karmarkar and Karp, 1982).

    A state is k bins, heaviest first. The two states whose bins differ most are merged, the heavy
    bins of one onto the light ones of the other, until one state is left. With `equal_size` every
    initial state holds k sequences, one a bin, so that all bins grow alike.
    """
    if equal_size:
        _check_equal_size(seqlen_list, k_partitions)
    shortest_first = sorted(range(len(seqlen_list)), key=lambda i: seqlen_list[i])
    width = k_partitions if equal_size else 1
    tie_breaker = count()

    def state(bins: list[tuple[int, list[int]]]) -> tuple:
        # By count among equal sums, so that an empty bin is always the first to receive.
        bins.sort(key=lambda bin_: (bin_[0], len(bin_[1])), reverse=True)
        return bins[-1][0] - bins[0][0], next(tie_breaker), bins

    heap = []
    for start in range(0, len(shortest_first), width):
        filled = [(seqlen_list[i], [i]) for i in shortest_first[start : start + width]]
        heap.append(state(filled + [(0, [])] * (k_partitions - width)))
    heapq.heapify(heap)
    while len(heap) > 1:
        heavy, light = heapq.heappop(heap)[2], heapq.heappop(heap)[2]
        pairs = zip(heavy, reversed(light), strict=True)
        heapq.heappush(heap, state([(a + b, items + more) for (a, items), (b, more) in pairs]))
    return [items for _, items in heap[0][2]]


def get_seqlen_balanced_partitions(
    seqlen_list: Sequence[int], k_partitions: int, equal_size: bool
) -> list[list[int]]:
    """Share sequences over k partitions of about the same total length.

    Args:
        seqlen_list: length (or workload) of each sequence.
        equal_size: every partition gets the same number of sequences.

    Returns:
        k sorted lists of indices that together hold every index once.

    Raises:
        AssertionError: there are fewer sequences than partitions, or `equal_size` cannot hold.
    """
    assert len(seqlen_list) >= k_partitions, (
        f"{len(seqlen_list)} sequences cannot fill {k_partitions} partitions"
    )
    return [sorted(part) for part in karmarkar_karp(seqlen_list, k_partitions, equal_size)]
