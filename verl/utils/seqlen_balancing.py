"""Sharing out sequences of unequal length: over data-parallel ranks and into micro-batches."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Hashable, Sequence
from itertools import chain, count

import torch
import torch.distributed as dist
from tensordict import TensorDict
from torch import Tensor

from verl.protocol import DataProto

# Cost of a transformer block: 24 h^2 s for its matrices and 4 h s^2 for attention. Divided by 4 h,
# with the hidden size h = 4096 of a 7B model: 6 h s + s^2.
_LINEAR_COST = 6 * 4096


def ceildiv(a: int, b: int) -> int:
    """a / b rounded up."""
    return -(a // -b)


def roundup_divisible(a: int, b: int) -> int:
    """The smallest multiple of b that is at least a."""
    return ceildiv(a, b) * b


def calculate_workload(seqlen_list: Tensor) -> Tensor:
    """Relative compute of sequences of the given lengths, for comparing them with each other."""
    return _LINEAR_COST * seqlen_list + seqlen_list**2


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


def greedy_partition(
    seqlen_list: Sequence[int], k_partitions: int, equal_size: bool
) -> list[list[int]]:
    """Longest sequence first, each into the lightest bin that has room."""
    if equal_size:
        _check_equal_size(seqlen_list, k_partitions)
    capacity = len(seqlen_list) // k_partitions if equal_size else len(seqlen_list)
    bins = [(0, index, []) for index in range(k_partitions)]
    for i in sorted(range(len(seqlen_list)), key=lambda i: -seqlen_list[i]):
        total, index, items = heapq.heappop(bins)
        items.append(i)
        # A full bin is closed by making it heavier than all others together.
        total += seqlen_list[i] if len(items) < capacity else sum(seqlen_list) + 1
        heapq.heappush(bins, (total, index, items))
    return [items for _, _, items in sorted(bins, key=lambda bin_: bin_[1])]


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


def get_group_balanced_partitions(
    seqlen_list: Sequence[int], uid_list: Sequence[Hashable], k_partitions: int
) -> list[list[int]]:
    """As :func:`get_seqlen_balanced_partitions`, but sequences of one uid stay together."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index, uid in enumerate(uid_list):
        groups[uid].append(index)
    members = list(groups.values())
    totals = [sum(seqlen_list[i] for i in group) for group in members]
    partitions = get_seqlen_balanced_partitions(totals, k_partitions, equal_size=False)
    return [sorted(chain.from_iterable(members[g] for g in part)) for part in partitions]


def log_seqlen_unbalance(
    seqlen_list: Sequence[int], partitions: list[list[int]], prefix: str
) -> dict[str, float]:
    """Metrics of tokens per partition: as the batch lies (`min`, `max`) and as `partitions` do."""
    size = len(seqlen_list) // len(partitions)
    before = [sum(seqlen_list[i : i + size]) for i in range(0, len(seqlen_list), size)]
    after = [sum(seqlen_list[i] for i in part) for part in partitions]
    return {
        f"{prefix}/min": min(before),
        f"{prefix}/max": max(before),
        f"{prefix}/minmax_diff": max(before) - min(before),
        f"{prefix}/balanced_min": min(after),
        f"{prefix}/balanced_max": max(after),
        f"{prefix}/mean": sum(after) / len(after),
    }


def _max_over_ranks(value: int, group: dist.ProcessGroup | None) -> int:
    device = "cuda" if dist.get_backend(group) == "nccl" else "cpu"
    tensor = torch.tensor(value, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX, group=group)
    return int(tensor)


def rearrange_micro_batches(
    batch: TensorDict,
    max_token_len: int,
    dp_group: dist.ProcessGroup | None = None,
    num_batches_divided_by: int | None = None,
    same_micro_num_in_dp: bool = True,
    min_num_micro_batch: int | None = None,
    use_dynamic_bsz_balance: bool = True,
) -> tuple[list[TensorDict], list[list[int]]]:
    """Split a batch into micro-batches of about `max_token_len` real tokens each.

    There are as few micro-batches as the token total allows; they are balanced, so one may exceed
    the limit by a part of a sequence.

    Args:
        batch: has an ``attention_mask`` of (B, S).
        max_token_len: tokens of a micro-batch; at least S.
        dp_group: ranks that must run the same number of micro-batches.
        num_batches_divided_by: round the number up to a multiple of this.
        same_micro_num_in_dp: agree on the largest number within `dp_group`; without it, collectives
            in the forward pass would hang.
        min_num_micro_batch: lower bound of the number.
        use_dynamic_bsz_balance: heaviest first, so that all ranks run alike ones together.

    Returns:
        The micro-batches and, for each, the rows it was made of.

    Raises:
        AssertionError: S exceeds `max_token_len`, or there are fewer rows than micro-batches.
    """
    width = batch["attention_mask"].shape[-1]
    assert max_token_len >= width, (
        f"max_token_len={max_token_len} is less than the sequence length {width}; raise it"
    )
    lengths = batch["attention_mask"].sum(dim=1)
    number = min(len(lengths), ceildiv(int(lengths.sum()), max_token_len))
    number = max(number, min_num_micro_batch or 1)
    if dist.is_initialized() and same_micro_num_in_dp:
        number = _max_over_ranks(number, dp_group)
    if num_batches_divided_by is not None:
        number = roundup_divisible(number, num_batches_divided_by)

    workloads = calculate_workload(lengths.long()).tolist()
    partitions = get_seqlen_balanced_partitions(workloads, number, equal_size=False)
    if use_dynamic_bsz_balance:
        partitions.sort(key=lambda part: sum(workloads[i] for i in part), reverse=True)
    return [batch[torch.tensor(part)] for part in partitions], partitions


def get_reverse_idx(idx_map: Sequence[int]) -> list[int]:
    """Inverse of a permutation: ``inverse[idx_map[i]] == i``."""
    inverse = [0] * len(idx_map)
    for position, index in enumerate(idx_map):
        inverse[index] = position
    return inverse


def prepare_dynamic_batch(
    data: DataProto, max_token_len: int, **kwargs
) -> tuple[list[DataProto], list[list[int]]]:
    """:func:`rearrange_micro_batches` for a DataProto, with its numpy columns and metadata."""
    _, partitions = rearrange_micro_batches(data.batch, max_token_len, **kwargs)
    return [data.select_idxs(part) for part in partitions], partitions


def restore_dynamic_batch(data: Tensor, batch_idx_list: list[list[int]]) -> Tensor:
    """Rows of the concatenated micro-batches back in the order of the batch."""
    return data[torch.tensor(get_reverse_idx(list(chain.from_iterable(batch_idx_list))))]
