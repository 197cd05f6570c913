"""Keys and values of many conversations in one block of memory, kept from one turn to the next.

Shapes: S rows of the cache, n of them in one forward, q new tokens of each, H key-value heads, C
capacity in tokens, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface
from transformers.cache_utils import Cache

SMALLEST_CAPACITY = 256
NO_TOKENS = np.empty(0, dtype=np.int64)


@dataclass(eq=False)
class CacheRow:
    """A row of the cache, at `index`. `tokens` are those whose keys and values it holds."""

    index: int
    trajectory_id: str | None = None
    tokens: np.ndarray = field(default_factory=lambda: NO_TOKENS)
    busy: bool = False
    last_used: int = 0


class RowTable:
    """Which trajectory owns which row. Idle rows keep their trajectory until they are needed."""

    def __init__(self, count: int) -> None:
        self.rows = [CacheRow(index) for index in range(count)]
        self._clock = 0

    def acquire(self, trajectory_id: str) -> CacheRow | None:
        """The trajectory's idle row, else a free one, else the one idle for longest.

        None when all are busy.
        """
        idle = [row for row in self.rows if not row.busy]
        if not idle:
            return None
        own = [row for row in idle if row.trajectory_id == trajectory_id]
        free = [row for row in idle if row.trajectory_id is None]
        row = (own or free or [min(idle, key=lambda row: row.last_used)])[0]
        if not own:
            row.trajectory_id, row.tokens = trajectory_id, NO_TOKENS
        row.busy = True
        return row

    def put_back(self, row: CacheRow, tokens: np.ndarray) -> None:
        """The row's request is done; it holds `tokens` now."""
        self._clock += 1
        row.busy, row.tokens, row.last_used = False, tokens, self._clock

    def release(self, trajectory_id: str) -> None:
        """Forget the trajectory; a row that is busy with it is forgotten as well."""
        for row in self.rows:
            if row.trajectory_id == trajectory_id:
                row.trajectory_id, row.tokens = None, NO_TOKENS

    def forget_all(self) -> None:
        """What the rows hold is of other weights."""
        for row in self.rows:
            row.trajectory_id, row.tokens = None, NO_TOKENS

    def to_front(self, busy: Sequence[CacheRow]) -> list[tuple[CacheRow, CacheRow]]:
        """Give `busy` the first places, in any order; returns the pairs that changed places."""
        outside = [row for row in busy if row.index >= len(busy)]
        holes = [row for row in self.rows if row.index < len(busy) and row not in busy]
        pairs = list(zip(outside, holes, strict=True))
        for first, second in pairs:
            first.index, second.index = second.index, first.index
        return pairs


class RowCache(Cache):
    """The key-value cache that a model sees. `select` says which rows and positions come next.

    Rows are views, not copies, as long as those that decode together lie side by side, which is
    what `RowTable.to_front` and `swap_rows` are for. Memory grows with the longest conversation.
    """

    def __init__(self, rows: int, layers: int, max_length: int) -> None:
        super().__init__(layers=[])
        self._num_rows = rows
        self._limit = max_length + 1  # the last position is scratch for padding
        self._capacity = min(SMALLEST_CAPACITY, self._limit)
        # (S, H, C, D) of keys and of values, made when the first ones of a layer arrive
        self._blocks: list[tuple[Tensor, Tensor] | None] = [None] * layers

    def select(self, rows: slice | Tensor, row_n: Tensor, position_nq: Tensor, length: int) -> None:
        """The next forward writes `position_nq` of the rows and reads their first `length`."""
        self._reserve(length + 1)
        self._rows, self._length = rows, length
        self._row_n1, self._position_nq = row_n[:, None], position_nq.clamp(max=self._capacity - 1)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs
    ) -> tuple[Tensor, Tensor]:
        """Store the new (n, H, q, D) keys and values; returns (n, H, length, D) of the rows."""
        block = self._blocks[layer_idx]
        if block is None:
            block = self._blocks[layer_idx] = self._empty(key_states), self._empty(value_states)
        keys, values = block
        keys[self._row_n1, :, self._position_nq] = key_states.transpose(1, 2)
        values[self._row_n1, :, self._position_nq] = value_states.transpose(1, 2)
        return keys[self._rows, :, : self._length], values[self._rows, :, : self._length]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions are always given to the model, so it never has to count."""
        return 0

    def swap_rows(self, pairs: Sequence[tuple[int, int]], length: int) -> None:
        """Exchange the first `length` positions of each pair of rows."""
        source = torch.tensor([row for pair in pairs for row in pair], dtype=torch.long)
        target = torch.tensor([row for pair in pairs for row in reversed(pair)], dtype=torch.long)
        for block in self._made():
            for states in block:
                held = states[:, :, :length]
                held[target] = held[source]

    def _reserve(self, capacity: int) -> None:
        if capacity <= self._capacity:
            return
        self._capacity = min(max(capacity, 2 * self._capacity), self._limit)
        self._blocks = [
            block and (self._grown(block[0]), self._grown(block[1])) for block in self._blocks
        ]

    def _made(self) -> list[tuple[Tensor, Tensor]]:
        return [block for block in self._blocks if block is not None]

    def _empty(self, states: Tensor) -> Tensor:
        _, heads, _, head_size = states.shape
        return states.new_zeros((self._num_rows, heads, self._capacity, head_size))

    def _grown(self, old: Tensor) -> Tensor:
        new = self._empty(old)
        new[:, :, : old.shape[2]] = old
        return new


def row_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs,
) -> tuple[Tensor, None]:
    """Attention of (n, heads, q, D) queries to (n, H, length, D) keys without repeating the keys.

    Heads that share keys are laid beside each other as further queries: in a cache, keys are many
    and queries few. `attention_mask` is (n, 1, q, length), true where a query may look; a layer
    with a `sliding_window` sees that many of them, itself included. `softcap` bounds the scores
    (Gemma-2); `s_aux` (heads,) are sinks that take probability and give no value (gpt-oss).
    """
    n, heads, q, head_size = query.shape
    kv_heads = key.shape[1]
    group = heads // kv_heads
    if sliding_window is not None:
        attention_mask = attention_mask & _within(sliding_window, attention_mask)
    mask = attention_mask.repeat(1, 1, group, 1) if group > 1 else attention_mask
    grouped = query.reshape(n, kv_heads, group * q, head_size)
    if softcap is None and s_aux is None:
        output = F.scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=scaling)
    else:
        scores = grouped @ key.transpose(2, 3) * (scaling or head_size**-0.5)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores.float().masked_fill(~mask, float("-inf"))
        if s_aux is not None:
            sinks = s_aux.view(1, kv_heads, group, 1).expand(n, -1, -1, q)
            scores = torch.cat([scores, sinks.reshape(n, kv_heads, group * q, 1)], dim=-1)
        probability = scores.softmax(dim=-1)[..., : key.shape[2]]
        output = probability.to(value.dtype) @ value
    return output.reshape(n, heads, q, value.shape[-1]).transpose(1, 2), None


def _within(window: int, visible: Tensor) -> Tensor:
    """(n, 1, q, length), true for the last `window` positions up to each query's own: the last
    that is visible to it."""
    own = visible.sum(dim=-1, keepdim=True) - 1
    return torch.arange(visible.shape[-1], device=visible.device) > own - window


ROW_ATTENTION = "row_attention"
AttentionInterface.register(ROW_ATTENTION, row_attention)
