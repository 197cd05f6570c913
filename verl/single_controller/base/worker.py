"""Worker: one process of a group."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

from verl.single_controller.base.decorator import Dispatch, Execute, register
from verl.single_controller.base.rendezvous import find_free_port


class WorkerHelper:
    """Facts about the node that a worker runs on."""

    @staticmethod
    def _get_node_ip() -> str:
        import ray

        return ray.util.get_node_ip_address().strip("[]")

    def get_available_master_addr_port(self) -> tuple[str, str]:
        """An address and a free port of this node, for another group to meet at."""
        return self._get_node_ip(), str(find_free_port())


class Worker(WorkerHelper):
    """Base of all workers: knows its place in the group from the environment.

    The group sets RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT
    before the process starts: ``torch.distributed.init_process_group()`` works in a constructor.
    """

    def __init__(self, cuda_visible_devices: str | None = None) -> None:
        """`cuda_visible_devices` overrides the devices that the group gave to this process."""
        if cuda_visible_devices is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = cuda_visible_devices
        self._rank = int(os.environ.get("RANK", "0"))
        self._world_size = int(os.environ.get("WORLD_SIZE", "1"))
        self._dp_rank_of_mesh: dict[str, int] = {}
        self._collects_mesh: dict[str, bool] = {}
        self._choose_device()

    def _choose_device(self) -> None:
        """Where Ray does not hide other workers' GPUs, this worker's is known by its index."""
        # Deferred: a worker is usable without Ray, too.
        from verl.utils.ray_utils import ray_noset_visible_devices

        if not (ray_noset_visible_devices() and torch.cuda.is_available()):
            return
        import ray

        devices = ray.get_runtime_context().get_accelerator_ids().get("GPU")
        if devices:
            os.environ["LOCAL_RANK"] = str(devices[0])
            torch.cuda.set_device(int(devices[0]))

    @property
    def rank(self) -> int:
        """Place in the group, 0-based."""
        return self._rank

    @property
    def world_size(self) -> int:
        """Number of workers in the group."""
        return self._world_size

    def get_master_addr_port(self) -> tuple[str, str]:
        """Where this group's processes meet."""
        return os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]

    def get_cuda_visible_devices(self) -> str:
        """The GPUs of this process as CUDA sees them, or ``not set``."""
        return os.environ.get("CUDA_VISIBLE_DEVICES", "not set")

    # --- place in a mesh ------------------------------------------------------------------------

    def _register_dispatch_collect_info(
        self, mesh_name: str, dp_rank: int, is_collect: bool
    ) -> None:
        """Declare which chunk this worker takes in a mesh, and whether its result is collected.

        Raises:
            ValueError: the worker has already declared its place in this mesh.
        """
        if mesh_name in self._dp_rank_of_mesh:
            raise ValueError(f"this worker already has a place in mesh '{mesh_name}'")
        self._dp_rank_of_mesh[mesh_name] = dp_rank
        self._collects_mesh[mesh_name] = is_collect

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def _query_dispatch_info(self, mesh_name: str) -> int:
        return self._dp_rank_of_mesh[mesh_name]

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def _query_collect_info(self, mesh_name: str) -> bool:
        return self._collects_mesh[mesh_name]

    # --- functions sent by the driver -----------------------------------------------------------

    @register(dispatch_mode=Dispatch.DP_COMPUTE_PROTO_WITH_FUNC)
    def execute_with_func_generator(self, func: Callable, *args: Any, **kwargs: Any) -> Any:
        """Run ``func(worker, *chunks)`` on every worker; results are concatenated."""
        return func(self, *args, **kwargs)

    @register(dispatch_mode=Dispatch.ALL_TO_ALL, execute_mode=Execute.RANK_ZERO)
    def execute_func_rank_zero(self, func: Callable, *args: Any, **kwargs: Any) -> Any:
        """Run ``func(*args)`` on rank 0."""
        return func(*args, **kwargs)
