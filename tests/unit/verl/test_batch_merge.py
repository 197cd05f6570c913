"""Uniting columns: equal ones pass, different ones are refused."""

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from verl.protocol import union_numpy_dict, union_tensor_dict
from verl.protocol.merge import deep_equal, union_two_dict

NAN = float("nan")


def objects(*values) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def test_union_tensor_dict():
    shared = torch.randn(4)
    left = TensorDict({"a": shared, "b": torch.zeros(4)}, batch_size=[4])
    right = TensorDict({"a": shared.clone(), "c": torch.ones(4)}, batch_size=[4])
    assert set(union_tensor_dict(left, right).keys()) == {"a", "b", "c"}
    with pytest.raises(AssertionError, match="`a` in tensor_dict1 and tensor_dict2"):
        union_tensor_dict(left, TensorDict({"a": shared + 1}, batch_size=[4]))
    with pytest.raises(AssertionError, match=r"shape \(4,\) and \(3,\)"):
        union_tensor_dict(left, TensorDict({}, batch_size=[3]))


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        (np.arange(24).reshape(2, 3, 4), np.arange(24).reshape(2, 3, 4), True),
        (np.arange(24).reshape(2, 3, 4), np.arange(24).reshape(2, 3, 4) + 1, False),
        (np.arange(3), np.arange(3.0), False),  # dtypes differ
        (np.array([1.0, NAN]), np.array([1.0, NAN]), True),
        (np.array([1.0, NAN]), np.array([NAN, 1.0]), False),
        (np.array(["a", "b"]), np.array(["a", "b"]), True),
        (objects(NAN, "nan"), objects(NAN, "nan"), True),
        (objects(NAN, "nan"), objects("nan", NAN), False),
        (objects(np.array([1, 2]), None), objects(np.array([1, 2]), None), True),
        (objects(np.array([1, 2]), None), objects(np.array([1, 3]), None), False),
        (objects({"a": [1, NAN]}), objects({"a": [1, NAN]}), True),
        (objects({"a": [1]}), objects({"b": [1]}), False),
        (objects([1, 2]), objects([1]), False),
        (objects(torch.ones(2)), objects(torch.ones(2)), True),
        (objects(torch.ones(2)), objects(torch.zeros(2)), False),
    ],
)
def test_union_numpy_dict_compares_by_content(left, right, same):
    if same:
        assert union_numpy_dict({"a": left}, {"a": right, "b": left}).keys() == {"a", "b"}
    else:
        with pytest.raises(AssertionError, match="`a` in tensor_dict1 and tensor_dict2"):
            union_numpy_dict({"a": left}, {"a": right})


def test_arrays_that_contain_themselves():
    first, second, plain = objects(None), objects(None), objects(None)
    first[0], second[0] = first, second
    assert deep_equal(first, second)
    assert not deep_equal(first, plain)


def test_union_two_dict():
    assert union_two_dict({"a": 1}, {"a": 1, "b": 2}) == {"a": 1, "b": 2}
    with pytest.raises(AssertionError, match="`a` is 1 in one dict and 2 in the other"):
        union_two_dict({"a": 1}, {"a": 2})
