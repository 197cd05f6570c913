"""Several workers in one process: they share a GPU, its memory and its process group."""

from __future__ import annotations

import inspect
from typing import Any

from verl.single_controller.base import ClassWithInitArgs, Worker
from verl.single_controller.base.decorator import MAGIC_ATTR
from verl.single_controller.ray.worker_class import RayClassWithInitArgs


class ColocatedWorkers(Worker):
    """Holds one worker of each class as an attribute and hands calls on to them."""

    class_dict: dict[str, ClassWithInitArgs]

    def __init__(self) -> None:
        super().__init__()
        for key, entry in self.class_dict.items():
            setattr(self, key, entry())

    def call_colocated(self, key: str, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the worker `key`."""
        return getattr(getattr(self, key), method)(*args, **kwargs)


class AsyncColocatedWorkers(ColocatedWorkers):
    """The same for classes with async methods.

    A class of its own, because one async method makes Ray run the whole actor on an event loop,
    where plain methods must not start one.
    """

    async def call_colocated_async(self, key: str, method: str, *args: Any, **kwargs: Any) -> Any:
        """Await an async method of the worker `key`."""
        return await getattr(getattr(self, key), method)(*args, **kwargs)


def _has_async_method(cls: type) -> bool:
    return any(
        hasattr(method, MAGIC_ATTR)
        for _, method in inspect.getmembers(cls, inspect.iscoroutinefunction)
    )


def create_colocated_worker_raw_cls(class_dict: dict[str, RayClassWithInitArgs]) -> type:
    """A worker class that holds one worker of each class under its key; may be subclassed."""
    # The classes without Ray: they are constructed inside the process, not as actors.
    plain = {
        key: ClassWithInitArgs(entry.raw_cls, *entry.args, **entry.kwargs)
        for key, entry in class_dict.items()
    }
    any_async = any(_has_async_method(entry.cls) for entry in plain.values())
    base = AsyncColocatedWorkers if any_async else ColocatedWorkers
    name = "_".join(["Colocated", *class_dict])
    return type(name, (base,), {"class_dict": plain})


def create_colocated_worker_cls(
    class_dict: dict[str, RayClassWithInitArgs],
) -> RayClassWithInitArgs:
    """Start workers of several classes in one process a rank.

    ``RayWorkerGroup(...).spawn(class_dict.keys())`` then gives one group for each key.
    """
    return RayClassWithInitArgs(create_colocated_worker_raw_cls(class_dict))


# verl distinguishes two ways to colocate; here there is one.
create_colocated_worker_cls_fused = create_colocated_worker_cls
