"""Row operations of DataProto for any batch: inverses and conserved rows."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verl import DataProto
from verl.protocol import pad_dataproto_to_divisor, unpad_dataproto

lengths = st.integers(min_value=1, max_value=24)
few = settings(max_examples=40)


def batch_of(length: int) -> DataProto:
    return DataProto.from_dict(
        {"id": torch.arange(length), "wide": torch.arange(2.0 * length).reshape(length, 2)},
        {"text": np.array([f"row {i}" for i in range(length)], dtype=object)},
        {"k": "v"},
    )


def ids(data: DataProto) -> list[int]:
    """The rows, after checking that all columns and the metadata came along."""
    index = data.batch["id"].tolist()
    assert data.batch["wide"][:, 0].tolist() == [2 * i for i in index]
    assert data.non_tensor_batch["text"].tolist() == [f"row {i}" for i in index]
    assert data.meta_info == {"k": "v"}
    return index


@few
@given(lengths, st.integers(min_value=1, max_value=30))
def test_split_then_concat_is_identity(length, size):
    assert ids(DataProto.concat(batch_of(length).split(size))) == list(range(length))


@few
@given(st.integers(min_value=1, max_value=6), st.integers(min_value=1, max_value=6))
def test_chunk_then_concat_is_identity(chunks, rows):
    parts = batch_of(chunks * rows).chunk(chunks)
    assert [len(part) for part in parts] == [rows] * chunks
    assert ids(DataProto.concat(parts)) == list(range(chunks * rows))


@few
@given(lengths.flatmap(lambda n: st.permutations(range(n))))
def test_reorder_by_the_inverse_restores(order):
    data = batch_of(len(order))
    data.reorder(torch.tensor(order))
    assert ids(data) == list(order)
    data.reorder(torch.tensor(np.argsort(order)))
    assert ids(data) == list(range(len(order)))


@few
@given(lengths, st.integers(min_value=1, max_value=40))
def test_pad_then_unpad_is_identity(length, divisor):
    padded, added = pad_dataproto_to_divisor(batch_of(length), divisor)
    assert len(padded) % divisor == 0 and 0 <= added < divisor
    assert ids(padded)[length:] == [i % length for i in range(added)]
    assert ids(unpad_dataproto(padded, added)) == list(range(length))


@few
@given(lengths, st.integers(min_value=1, max_value=4))
def test_repeat_orders_copies_as_asked(length, times):
    data = batch_of(length)
    assert ids(data.repeat(times)) == [i for i in range(length) for _ in range(times)]
    assert ids(data.repeat(times, interleave=False)) == list(range(length)) * times


@few
@given(lengths.flatmap(lambda n: st.lists(st.booleans(), min_size=n, max_size=n)))
def test_mask_and_its_indices_select_the_same(mask):
    data = batch_of(len(mask))
    assert ids(data[mask]) == ids(data[np.flatnonzero(mask)]) == np.flatnonzero(mask).tolist()
