"""Which trajectory owns which row, and rows that change places."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from verl.workers.rollout.request import common_prefix
from verl.workers.rollout.row_cache import RowCache, RowTable, row_attention

TOKENS = np.array([4, 5, 6])


def test_a_trajectory_finds_its_row_again():
    table = RowTable(2)
    row = table.acquire("a")
    table.put_back(row, TOKENS)
    other = table.acquire("b")
    assert other is not row
    assert table.acquire("a") is row
    assert row.tokens is TOKENS


def test_no_row_while_all_are_busy():
    table = RowTable(1)
    row = table.acquire("a")
    assert table.acquire("b") is None
    table.put_back(row, TOKENS)
    assert table.acquire("b") is row
    assert row.tokens.size == 0  # what a left there is of no use to b


def test_the_longest_idle_trajectory_makes_room():
    table = RowTable(3)
    rows = {name: table.acquire(name) for name in "abc"}
    for name in "bca":
        table.put_back(rows[name], TOKENS)
    assert table.acquire("new") is rows["b"]
    assert table.acquire("c") is rows["c"]


def test_a_released_trajectory_is_forgotten_even_while_busy():
    table = RowTable(2)
    row = table.acquire("a")
    table.release("a")
    table.put_back(row, TOKENS)
    again = table.acquire("a")
    assert again.tokens.size == 0


def test_forget_all():
    table = RowTable(1)
    table.put_back(table.acquire("a"), TOKENS)
    table.forget_all()
    assert table.acquire("a").tokens.size == 0


@given(st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)))))
def test_busy_rows_get_the_first_places(case):
    count, chosen = case
    table = RowTable(count)
    busy = [table.rows[index] for index in chosen]
    before = {id(row): row.index for row in table.rows}
    pairs = table.to_front(busy)
    assert sorted(row.index for row in busy) == list(range(len(busy)))
    assert sorted(row.index for row in table.rows) == list(range(count))
    moved = {id(row) for pair in pairs for row in pair}
    assert all(row.index == before[id(row)] for row in table.rows if id(row) not in moved)


def test_rows_swap_and_memory_grows_without_loss():
    cache = RowCache(rows=3, layers=1, max_length=900)
    position = torch.arange(4)[None]
    contents = torch.arange(4.0).view(1, 1, 4, 1)
    for row in range(3):
        rows = torch.tensor([row])
        cache.select(rows, rows, position, 4)
        cache.update(contents + 10 * row, -contents - 10 * row, 0)
    cache.swap_rows([(0, 2)], length=4)
    cache.select(slice(0, 1), torch.tensor([0]), torch.tensor([[700]]), 701)  # beyond the capacity
    keys, values = cache.update(torch.ones(1, 1, 1, 1), torch.ones(1, 1, 1, 1), 0)
    assert keys.shape == (1, 1, 701, 1)
    assert keys[0, 0, :4, 0].tolist() == [20, 21, 22, 23]  # what row 2 held
    assert values[0, 0, :4, 0].tolist() == [-20, -21, -22, -23]
    assert keys[0, 0, 700, 0] == 1


def test_padding_beyond_the_last_position_hits_the_scratch_position():
    cache = RowCache(rows=1, layers=1, max_length=3)
    row = torch.tensor([0])
    cache.select(slice(0, 1), row, torch.tensor([[2, 3, 4]]), 3)
    keys, _ = cache.update(torch.full((1, 1, 3, 1), 7.0), torch.ones(1, 1, 3, 1), 0)
    assert keys[0, 0, :, 0].tolist() == [0, 0, 7]


def test_attention_of_grouped_heads_equals_repeated_keys():
    torch.manual_seed(0)
    query = torch.randn(2, 6, 3, 8)
    key, value = torch.randn(2, 2, 2, 5, 8)
    mask = torch.ones(2, 1, 3, 5, dtype=torch.bool).tril(2)
    got, _ = row_attention(torch.nn.Module(), query, key, value, mask, scaling=0.3)
    want = torch.nn.functional.scaled_dot_product_attention(
        query,
        key.repeat_interleave(3, dim=1),
        value.repeat_interleave(3, dim=1),
        attn_mask=mask,
        scale=0.3,
    )
    torch.testing.assert_close(got, want.transpose(1, 2), atol=1e-6, rtol=1e-5)


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_common_prefix(first, second):
    length = common_prefix(np.array(first, dtype=np.int64), np.array(second, dtype=np.int64))
    assert first[:length] == second[:length]
    assert length == min(len(first), len(second)) or first[length] != second[length]
