"""Batches survive pickling: every dtype, nested tensors, without needless copies."""

import pickle

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from verl import DataProto
from verl.protocol import (
    deserialize_single_tensor,
    deserialize_tensordict,
    serialize_single_tensor,
    serialize_tensordict,
)

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int16,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.float8_e5m2,
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
def test_single_tensor_round_trip(dtype, shape):
    tensor = (torch.randn(shape) * 3).to(dtype)
    restored = deserialize_single_tensor(serialize_single_tensor(tensor))
    assert restored.dtype == dtype and restored.shape == tensor.shape
    assert torch.equal(restored.double(), tensor.double())


def test_encoding_shares_memory_and_decoding_is_writable():
    tensor = torch.zeros(4)
    encoded = serialize_single_tensor(tensor)
    tensor[0] = 7
    assert encoded.data[0] == 7
    encoded.data.flags.writeable = False
    restored = deserialize_single_tensor(encoded)
    restored += 1
    assert restored.tolist() == [8, 1, 1, 1] and tensor.tolist() == [7, 0, 0, 0]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
def test_nested_tensors_round_trip(layout):
    parts = [torch.randn(2, 3), torch.randn(4, 3)]
    nested = torch.nested.as_nested_tensor(parts, layout=layout)
    batch = TensorDict({"nested": nested, "dense": torch.arange(2)}, batch_size=[2], device="cpu")
    restored = deserialize_tensordict(serialize_tensordict(batch))
    assert restored.batch_size == batch.batch_size and restored.device == batch.device
    assert restored["nested"].layout == layout
    for part, copy in zip(parts, restored["nested"].unbind(), strict=True):
        assert torch.equal(part, copy)


def test_jagged_second_dimension_keeps_its_place():
    # Rotary positions: 3 sections, tokens jagged -> (B, 3, j).
    nested = torch.nested.as_nested_tensor(
        [torch.ones(3, 4), torch.zeros(3, 5)], layout=torch.jagged
    )
    batch = TensorDict({"position_ids": nested}, batch_size=[2])
    restored = deserialize_tensordict(serialize_tensordict(batch))["position_ids"]
    assert [tuple(row.shape) for row in restored.unbind()] == [(3, 4), (3, 5)]


def test_a_chunk_pickles_its_own_rows_only():
    data = DataProto.from_dict({"a": torch.arange(1000.0)}, {"b": np.arange(1000)})
    buffers = []
    head = pickle.dumps(data.chunk(4)[1], protocol=5, buffer_callback=buffers.append)
    # 250 float32 and 250 int64 travel out of band, nothing of them in the stream.
    assert sorted(buffer.raw().nbytes for buffer in buffers) == [1000, 2000]
    assert len(head) < 1000

    frozen = [bytes(buffer.raw()) for buffer in buffers]  # read-only, as from an object store
    restored = pickle.loads(head, buffers=frozen)
    restored.batch["a"] += 1
    restored.non_tensor_batch["b"] += 1
    assert restored.batch["a"][0] == 251 and restored.non_tensor_batch["b"][0] == 251


@pytest.mark.parametrize("batch", [None, TensorDict({}, batch_size=[10])])
def test_batches_without_tensors_pickle(batch):
    restored = pickle.loads(pickle.dumps(DataProto(batch=batch, meta_info={"k": 1})))
    assert len(restored) == (0 if batch is None else 10)
    assert restored.meta_info == {"k": 1}


def test_save_and_load(tmp_path):
    data = DataProto.from_dict({"a": torch.arange(3)}, {"t": ["x", "y", "z"]}, {"k": [1]})
    data.save_to_disk(tmp_path / "batch.pt")
    loaded = DataProto.load_from_disk(tmp_path / "batch.pt")
    assert loaded.batch["a"].tolist() == [0, 1, 2]
    assert loaded.non_tensor_batch["t"].tolist() == ["x", "y", "z"]
    assert loaded.meta_info == {"k": [1]}


def test_tensordict_round_trip_keeps_ragged_and_nested_columns():
    columns = {
        "uid": ["u1", "u2"],
        "scores": [[], [0.5, 0.8]],
        "info": [{"acc": 1.0}, {"acc": 0.0}],
        "messages": [[{"role": "user"}, {"role": "tool"}], [{"role": "user"}, {"role": "user"}]],
    }
    data = DataProto.from_dict({"a": torch.arange(2)}, columns, {"global_steps": 42})
    joined = data.to_tensordict()
    assert joined["uid"] == ["u1", "u2"] and joined["global_steps"] == 42
    assert joined["info"][1] == {"acc": 0.0}

    restored = DataProto.from_tensordict(joined)
    assert restored.batch["a"].tolist() == [0, 1] and restored.meta_info == {"global_steps": 42}
    for key, rows in columns.items():
        assert [list(row) for row in restored.non_tensor_batch[key]] == [list(r) for r in rows]
