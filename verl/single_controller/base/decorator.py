"""`@register`: the methods of a worker that its group offers, and how they are called."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

from verl.protocol import DataProtoFuture
from verl.single_controller.base.dispatch import (
    DISPATCH_MODE_FN_REGISTRY,
    Dispatch,
    Execute,
    collect_all_to_all,
    collect_dp_compute_data_proto,
    dispatch_all_to_all,
    dispatch_dp_compute,
    dispatch_dp_compute_data_proto,
    dispatch_one_to_all,
    get_predefined_dispatch_fn,
    get_predefined_execute_fn,
    make_nd_compute_dataproto_dispatch_fn,
    register_dispatch_mode,
    update_dispatch_mode,
)
from verl.single_controller.base.dynamic_enum import DynamicEnum

__all__ = [
    "DISPATCH_MODE_FN_REGISTRY",
    "MAGIC_ATTR",
    "Dispatch",
    "Execute",
    "collect_all_to_all",
    "collect_dp_compute_data_proto",
    "dispatch_all_to_all",
    "dispatch_dp_compute",
    "dispatch_dp_compute_data_proto",
    "dispatch_one_to_all",
    "get_predefined_dispatch_fn",
    "get_predefined_execute_fn",
    "make_nd_compute_dataproto_dispatch_fn",
    "register",
    "register_dispatch_mode",
    "update_dispatch_mode",
]

# The attribute in which a registered method carries its registration.
MAGIC_ATTR = "_verl_registered_method"


def _check_modes(dispatch_mode: DynamicEnum | dict, execute_mode: DynamicEnum) -> None:
    if isinstance(dispatch_mode, dict):
        missing = {"dispatch_fn", "collect_fn"} - dispatch_mode.keys()
        assert not missing, f"a dispatch mode needs a dispatch_fn and a collect_fn; {missing} lacks"
    else:
        assert isinstance(dispatch_mode, Dispatch), f"{dispatch_mode!r} is not a dispatch mode"
    assert isinstance(execute_mode, Execute), f"{execute_mode!r} is not an execute mode"


def _materialize(args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    def value_of(value: Any) -> Any:
        return value.get() if isinstance(value, DataProtoFuture) else value

    return tuple(map(value_of, args)), {key: value_of(value) for key, value in kwargs.items()}


def register(
    dispatch_mode: DynamicEnum | dict[str, Callable] = Dispatch.ALL_TO_ALL,
    execute_mode: DynamicEnum = Execute.ALL,
    blocking: bool = True,
    materialize_futures: bool = True,
) -> Callable[[Callable], Callable]:
    """Offer a worker's method, plain or async, on its worker group.

    Args:
        dispatch_mode: a member of :class:`Dispatch`, or a dict with ``dispatch_fn`` and
            ``collect_fn``.
        execute_mode: which workers run the method.
        blocking: wait for the results; otherwise references or a DataProtoFuture come back.
        materialize_futures: wait, on the worker, for DataProtoFuture arguments.

    Raises:
        AssertionError: a mode is not one.
    """
    _check_modes(dispatch_mode, execute_mode)
    registration = {
        "dispatch_mode": dispatch_mode,
        "execute_mode": execute_mode,
        "blocking": blocking,
    }

    def decorate(method: Callable) -> Callable:
        @wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            if materialize_futures:
                args, kwargs = _materialize(args, kwargs)
            return method(*args, **kwargs)

        @wraps(method)
        async def call_async(*args: Any, **kwargs: Any) -> Any:
            if materialize_futures:
                args, kwargs = _materialize(args, kwargs)
            return await method(*args, **kwargs)

        wrapped = call_async if inspect.iscoroutinefunction(method) else call
        setattr(wrapped, MAGIC_ATTR, registration)
        return wrapped

    return decorate
