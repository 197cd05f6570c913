"""Several workers in one process: they share a GPU, its memory and its process group."""

from __future__ import annotations

from typing import Any

from verl.single_controller.base import ClassWithInitArgs, Worker
from verl.single_controller.ray.worker_class import RayClassWithInitArgs


class ColocatedWorkers(Worker):
    """Holds one worker of each class and hands calls on to them."""

    class_dict: dict[str, ClassWithInitArgs]

    def __init__(self) -> None:
        super().__init__()
        self._workers = {key: entry() for key, entry in self.class_dict.items()}

    def call_colocated(self, key: str, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the worker `key`."""
        return getattr(self._workers[key], method)(*args, **kwargs)


def create_colocated_worker_cls(
    class_dict: dict[str, RayClassWithInitArgs],
) -> RayClassWithInitArgs:
    """Start workers of several classes in one process a rank.

    ``RayWorkerGroup(...).spawn(class_dict.keys())`` then gives one group for each key.
    """
    # The classes without Ray: they are constructed inside the process, not as actors.
    plain = {
        key: ClassWithInitArgs(entry.raw_cls, *entry.args, **entry.kwargs)
        for key, entry in class_dict.items()
    }
    name = "_".join(["Colocated", *class_dict])
    return RayClassWithInitArgs(type(name, (ColocatedWorkers,), {"class_dict": plain}))
