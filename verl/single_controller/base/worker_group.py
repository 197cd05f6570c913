"""WorkerGroup: the driver's handle on many workers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from verl.single_controller.base.decorator import MAGIC_ATTR, Registration
from verl.single_controller.base.dispatch import MODES


class ResourcePool:
    """Numbers of processes on each node."""

    def __init__(
        self, process_on_nodes: list[int] | None = None, max_colocate_count: int = 10
    ) -> None:
        """`max_colocate_count` worker groups may share each place of the pool."""
        self._store = list(process_on_nodes or [])
        self.max_colocate_count = max_colocate_count

    @property
    def store(self) -> list[int]:
        """Processes on each node."""
        return self._store

    @property
    def world_size(self) -> int:
        """Processes on all nodes."""
        return sum(self._store)


class ClassWithInitArgs:
    """A class and the arguments to construct it with, elsewhere and later."""

    def __init__(self, cls: Any, *args: Any, **kwargs: Any) -> None:
        self.cls = cls
        self.args = args
        self.kwargs = kwargs

    def __call__(self) -> Any:
        return self.cls(*self.args, **self.kwargs)


class WorkerGroup(ABC):
    """Binds the registered methods of a worker class: one call reaches all workers."""

    if TYPE_CHECKING:  # the methods that `_bind_worker_methods` finds

        def __getattr__(self, name: str) -> Callable[..., Any]: ...

    def __init__(self) -> None:
        self._workers: list = []

    @property
    def world_size(self) -> int:
        """Number of workers."""
        return len(self._workers)

    @abstractmethod
    def execute(self, registration: Registration, method: str, args: tuple, kwargs: dict) -> list:
        """The results of calling `method`, one a worker that runs it."""

    def _bind_worker_methods(self, worker_class: type) -> None:
        """Give the group one method for each registered method of `worker_class`."""
        for name in dir(worker_class):
            registration = getattr(getattr(worker_class, name, None), MAGIC_ATTR, None)
            if registration is not None:
                setattr(self, name, self._caller(name, registration))

    def _caller(self, method: str, registration: Registration) -> Callable[..., Any]:
        """The group's side of a registered method: spread, execute, collect."""
        mode = MODES[registration.dispatch_mode]

        def call(*args: Any, **kwargs: Any) -> Any:
            size = self.world_size
            spread_args = tuple(mode.spread(value, size) for value in args)
            spread_kwargs = {key: mode.spread(value, size) for key, value in kwargs.items()}
            return mode.collect(self.execute(registration, method, spread_args, spread_kwargs))

        call.__name__ = method
        return call
