"""Joining the parts of two batches: columns, numpy columns and metadata."""

from typing import Any

import numpy as np
import torch
from tensordict import TensorDict


def deep_equal(left: Any, right: Any) -> bool:
    """Same type and same content. NaN equals NaN; arrays that contain themselves are allowed."""
    return _deep_equal(left, right, seen=set())


def _deep_equal(left: Any, right: Any, seen: set[int]) -> bool:
    if type(left) is not type(right):
        return False
    if id(left) in seen:
        # A cycle: whatever differs is found by the comparison that is already under way.
        return True
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, float):
        return left == right or (left != left and right != right)
    if not isinstance(left, np.ndarray | dict | list | tuple):
        return bool(left == right)

    if isinstance(left, np.ndarray):
        if left.dtype != right.dtype or left.shape != right.shape:
            return False
        if left.dtype != object:
            # equal_nan is defined for numbers only; strings and dates have no NaN to compare.
            return np.array_equal(left, right, equal_nan=left.dtype.kind in "fc")
        pairs = zip(left.flat, right.flat, strict=True)
    elif isinstance(left, dict):
        if left.keys() != right.keys():
            return False
        pairs = ((left[key], right[key]) for key in left)
    elif len(left) != len(right):
        return False
    else:
        pairs = zip(left, right, strict=True)
    inner = seen | {id(left)}
    return all(_deep_equal(a, b, inner) for a, b in pairs)


def union_tensor_dict(tensor_dict1: TensorDict, tensor_dict2: TensorDict) -> TensorDict:
    """Add the columns of `tensor_dict2` to `tensor_dict1`, in place.

    Raises:
        AssertionError: the batch sizes differ, or a shared column holds different values.
    """
    assert tensor_dict1.batch_size == tensor_dict2.batch_size, (
        f"cannot unite batches of shape {tuple(tensor_dict1.batch_size)} and "
        f"{tuple(tensor_dict2.batch_size)}"
    )
    present = set(tensor_dict1.keys())
    for key, value in tensor_dict2.items():
        if key in present:
            assert tensor_dict1[key].equal(value), (
                f"`{key}` in tensor_dict1 and tensor_dict2 are not the same object."
            )
        else:
            tensor_dict1[key] = value
    return tensor_dict1


def union_numpy_dict(
    tensor_dict1: dict[str, np.ndarray], tensor_dict2: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Add the columns of `tensor_dict2` to `tensor_dict1`, in place.

    Raises:
        AssertionError: a shared column holds different values (NaN equals NaN).
    """
    for key, value in tensor_dict2.items():
        if key in tensor_dict1:
            assert deep_equal(tensor_dict1[key], value), (
                f"`{key}` in tensor_dict1 and tensor_dict2 are not the same object."
            )
        tensor_dict1[key] = value
    return tensor_dict1


def union_two_dict(dict1: dict, dict2: dict) -> dict:
    """Add the entries of `dict2` to `dict1`, in place.

    Raises:
        AssertionError: a shared key holds different values.
    """
    for key, value in dict2.items():
        if key in dict1:
            assert deep_equal(dict1[key], value), (
                f"`{key}` is {dict1[key]!r} in one dict and {value!r} in the other"
            )
        dict1[key] = value
    return dict1


def list_of_dict_to_dict_of_list(list_of_dict: list[dict]) -> dict[str, list]:
    """Turn rows into columns: ``[{"a": 1}, {"a": 2}] -> {"a": [1, 2]}``.

    Raises:
        AssertionError: the rows do not share one set of keys.
    """
    if not list_of_dict:
        return {}
    keys = list_of_dict[0].keys()
    for row in list_of_dict:
        assert row.keys() == keys, f"rows have different keys: {sorted(keys)} and {sorted(row)}"
    return {key: [row[key] for row in list_of_dict] for key in keys}


def merge_meta_info(meta_infos: list[dict[str, Any]]) -> dict[str, Any]:
    """One `meta_info` out of many workers'.

    ``metrics`` (a dict, or a list of dicts) become one dict of lists, in worker order; a metric
    that only some workers report keeps the values there are. Every other key must agree.

    Raises:
        AssertionError: two workers disagree about a key other than ``metrics``.
    """
    merged: dict[str, Any] = {}
    metrics: dict[str, list] = {}
    for meta_info in meta_infos:
        for key, value in meta_info.items():
            if key == "metrics":
                _extend_metrics(metrics, value)
            elif key in merged:
                assert deep_equal(merged[key], value), (
                    f"Conflicting values for meta_info key '{key}': {merged[key]!r} and {value!r}"
                )
            else:
                merged[key] = value
    if metrics:
        merged["metrics"] = metrics
    return merged


def _extend_metrics(metrics: dict[str, list], reported: dict | list[dict]) -> None:
    for report in reported if isinstance(reported, list) else [reported]:
        for name, value in report.items():
            metrics.setdefault(name, []).extend(value if isinstance(value, list) else [value])
