"""The import surface of worker groups on Ray; the code sits in the files beside it."""

from verl.single_controller.ray.colocate import create_colocated_worker_cls
from verl.single_controller.ray.resource_pool import RayResourcePool
from verl.single_controller.ray.worker_class import RayClassWithInitArgs
from verl.single_controller.ray.worker_group import RayWorkerGroup

__all__ = [
    "RayClassWithInitArgs",
    "RayResourcePool",
    "RayWorkerGroup",
    "create_colocated_worker_cls",
]
