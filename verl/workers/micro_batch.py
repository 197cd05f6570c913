"""Cutting a rank's rows into micro-batches, by rows or by tokens; no sum over rows changes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from verl.config.model import MicroBatchConfig
from verl.utils.errors import UserError


def micro_batch_rows(
    length_R: Tensor,
    active_R: Tensor,
    config: MicroBatchConfig,
    *,
    packed: bool,
    group: dist.ProcessGroup | None,
) -> list[Tensor]:
    """Row indices of each micro-batch; the list is as long on every rank of `group`.

    Rows are taken longest first, so that a micro-batch holds rows of similar length and little is
    padded. Inactive rows are left out; a rank with fewer micro-batches than another gets empty
    ones, which still run the model's collectives.

    Args:
        length_R: tokens of each row. active_R: rows that have something to learn from.
        packed: rows are laid end to end; otherwise a micro-batch costs its rows times its longest.

    Raises:
        UserError: a row alone is longer than `max_token_len_per_gpu`.
    """
    rows = active_R.nonzero().squeeze(-1)
    rows = rows[length_R[rows].argsort(descending=True, stable=True)]
    if config.use_dynamic_bsz:
        lengths, limit = length_R[rows].tolist(), config.max_token_len_per_gpu
        _check_longest(lengths, limit)
        sizes = sizes_by_tokens(lengths, limit, packed=packed)
    else:
        sizes = _sizes_by_rows(len(rows), config.micro_batch_size_per_gpu)
    batches = list(rows.split(sizes)) if sizes else []
    missing = _most_on_any_rank(len(batches), length_R.device, group) - len(batches)
    return batches + [rows[:0]] * missing


def _sizes_by_rows(rows: int, micro_batch_size: int | None) -> list[int]:
    size = micro_batch_size or max(rows, 1)
    return [min(size, rows - start) for start in range(0, rows, size)]


def sizes_by_tokens(lengths: Sequence[int], limit: int, *, packed: bool) -> list[int]:
    """How many of the falling `lengths` go into each micro-batch of at most `limit` tokens.

    A length beyond the limit gets a micro-batch of its own.
    """
    batches: list[list[int]] = []
    for length in lengths:
        grown = [*batches[-1], length] if batches else [length]
        cost = sum(grown) if packed else len(grown) * grown[0]
        if batches and cost <= limit:
            batches[-1] = grown
        else:
            batches.append([length])
    return [len(batch) for batch in batches]


def _check_longest(lengths: Sequence[int], limit: int) -> None:
    if lengths and lengths[0] > limit:
        raise UserError(
            f"a row of {lengths[0]} tokens does not fit max_token_len_per_gpu={limit}; "
            "raise it to at least data.max_prompt_length + data.max_response_length"
        )


def _most_on_any_rank(count: int, device: torch.device, group: dist.ProcessGroup | None) -> int:
    """At least 1: an idle rank, and an idle group, still runs one forward."""
    if group is None or group.size() == 1:
        return max(count, 1)
    most = torch.tensor(max(count, 1), device=device)
    dist.all_reduce(most, op=dist.ReduceOp.MAX, group=group)
    return int(most)
