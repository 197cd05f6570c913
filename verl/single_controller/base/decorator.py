"""`@register`: the methods of a worker that its group offers, and how they are called."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

from verl.single_controller.base.dispatch import Dispatch, Execute

__all__ = ["MAGIC_ATTR", "Dispatch", "Execute", "Registration", "register"]

# The attribute in which a registered method carries its registration.
MAGIC_ATTR = "_verl_registered_method"

Method = TypeVar("Method", bound=Callable)


class Registration(NamedTuple):
    """How the group calls a method."""

    dispatch_mode: Dispatch
    execute_mode: Execute


def register(
    dispatch_mode: Dispatch = Dispatch.ALL_TO_ALL, execute_mode: Execute = Execute.ALL
) -> Callable[[Method], Method]:
    """Offer a worker's method on its worker group, which waits for its results.

    Args:
        dispatch_mode: how arguments are spread and results collected.
        execute_mode: which workers run the method.

    Raises:
        AssertionError: a mode is not one.
    """
    assert isinstance(dispatch_mode, Dispatch), f"{dispatch_mode!r} is not a dispatch mode"
    assert isinstance(execute_mode, Execute), f"{execute_mode!r} is not an execute mode"

    def decorate(method: Method) -> Method:
        setattr(method, MAGIC_ATTR, Registration(dispatch_mode, execute_mode))
        return method

    return decorate
