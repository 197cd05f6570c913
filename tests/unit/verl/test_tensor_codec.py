"""Batches survive pickling: every dtype, without needless copies."""

import pickle

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from verl import DataProto
from verl.protocol.codec import (
    deserialize_single_tensor,
    serialize_single_tensor,
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
