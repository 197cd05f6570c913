"""WorkerGroup: the driver's handle on many workers."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from verl.single_controller.base.decorator import (
    MAGIC_ATTR,
    get_predefined_dispatch_fn,
    get_predefined_execute_fn,
)

logger = logging.getLogger(__name__)


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

    def add_node(self, process_count: int) -> None:
        """Append a node."""
        self._store.append(process_count)

    def local_world_size_list(self) -> list[int]:
        """For each rank, the number of processes on its node."""
        return [size for size in self._store for _ in range(size)]

    def local_rank_list(self) -> list[int]:
        """For each rank, its place on its node."""
        return [rank for size in self._store for rank in range(size)]


class ClassWithInitArgs:
    """A class and the arguments to construct it with, elsewhere and later."""

    def __init__(self, cls: type, *args: Any, **kwargs: Any) -> None:
        self.cls = cls
        self.args = args
        self.kwargs = kwargs

    def __call__(self) -> Any:
        return self.cls(*self.args, **self.kwargs)


def check_workers_alive(
    workers: list, is_alive: Callable[[Any], bool], gap_time: float = 1.0
) -> None:
    """Watch until a worker dies, then abort this process.

    For a driver that may block in code that does not notice a death. Calls through a worker group
    need no watch: they raise by themselves.
    """
    while True:
        for rank, worker in enumerate(workers):
            if not is_alive(worker):
                logger.error("worker %d (%s) is dead; aborting the driver", rank, worker)
                signal.raise_signal(signal.SIGABRT)
        time.sleep(gap_time)


class WorkerGroup:
    """Binds the registered methods of a worker class: one call reaches all workers."""

    def __init__(self, resource_pool: ResourcePool | None) -> None:
        self.resource_pool = resource_pool
        self._workers: list = []
        self._dispatch_info: dict[str, list[int]] = {}
        self._collect_info: dict[str, list[bool]] = {}

    @property
    def world_size(self) -> int:
        """Number of workers."""
        return len(self._workers)

    def dispatch_info(self, mesh_name: str) -> list[int]:
        """For each worker, its data-parallel rank in a mesh. Asked once and remembered."""
        if mesh_name not in self._dispatch_info:
            self._dispatch_info[mesh_name] = self._query_dispatch_info(mesh_name)
        return self._dispatch_info[mesh_name]

    def collect_info(self, mesh_name: str) -> list[bool]:
        """For each worker, whether its result in a mesh counts. Asked once and remembered."""
        if mesh_name not in self._collect_info:
            self._collect_info[mesh_name] = self._query_collect_info(mesh_name)
        return self._collect_info[mesh_name]

    def _is_worker_alive(self, worker: Any) -> bool:
        raise NotImplementedError

    def start_worker_aliveness_check(self, every_n_seconds: float = 1.0) -> None:
        """Run :func:`check_workers_alive` in the background."""
        threading.Thread(
            target=check_workers_alive,
            args=(self._workers, self._is_worker_alive, every_n_seconds),
            daemon=True,
        ).start()

    def _bind_worker_method(
        self, user_defined_cls: type, func_generator: Callable[..., Callable]
    ) -> list[str]:
        """Give the group one method for each registered method of `user_defined_cls`."""
        bound = []
        for name in dir(user_defined_cls):
            registration = getattr(getattr(user_defined_cls, name, None), MAGIC_ATTR, None)
            if registration is None:
                continue
            mode = registration["dispatch_mode"]
            functions = mode if isinstance(mode, dict) else get_predefined_dispatch_fn(mode)
            execute = get_predefined_execute_fn(registration["execute_mode"])["execute_fn_name"]
            method = func_generator(
                self,
                name,
                dispatch_fn=functions["dispatch_fn"],
                collect_fn=functions["collect_fn"],
                execute_fn=getattr(self, execute),
                blocking=registration["blocking"],
            )
            setattr(self, name, method)
            bound.append(name)
        return bound
