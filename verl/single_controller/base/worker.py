"""Worker: one process of a group."""

from __future__ import annotations

import os

import torch

from verl.single_controller.base.rendezvous import find_free_port


class Worker:
    """Base of all workers: knows its place in the group from the environment.

    The group sets RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT
    before the process starts: ``torch.distributed.init_process_group()`` works in a constructor.
    """

    def __init__(self) -> None:
        self._rank = int(os.environ.get("RANK", "0"))
        self._world_size = int(os.environ.get("WORLD_SIZE", "1"))
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

    def get_available_master_addr_port(self) -> tuple[str, str]:
        """An address and a free port of this node, for another group to meet at."""
        import ray

        return ray.util.get_node_ip_address().strip("[]"), str(find_free_port())
