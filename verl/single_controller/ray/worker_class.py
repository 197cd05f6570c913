"""A worker class with its arguments, to be started as a Ray actor."""

from __future__ import annotations

from typing import Any

import ray
from ray.actor import ActorClass, ActorHandle
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from verl.single_controller.base import ClassWithInitArgs
from verl.single_controller.ray.resource_pool import Place


def unwrap_ray_remote(cls: Any) -> type:
    """The class itself, whether or not ``@ray.remote`` decorates it."""
    return cls.__ray_actor_class__ if isinstance(cls, ActorClass) else cls


class RayClassWithInitArgs(ClassWithInitArgs):
    """A worker class, plain or decorated with ``@ray.remote``, and its constructor's arguments."""

    def __init__(self, cls: Any, *args: Any, **kwargs: Any) -> None:
        remote_cls = cls if isinstance(cls, ActorClass) else ray.remote(cls)
        super().__init__(remote_cls, *args, **kwargs)
        self._options: dict[str, Any] = {}

    @property
    def raw_cls(self) -> type:
        """The class without Ray."""
        return unwrap_ray_remote(self.cls)

    def update_options(self, options: dict[str, Any]) -> None:
        """Add Ray actor options, e.g. ``{"max_concurrency": 2}``."""
        self._options.update(options)

    def start(
        self, place: Place, share: dict[str, float], env_vars: dict[str, str], name: str, **options
    ) -> ActorHandle:
        """Start one actor on a place; `share` is what it takes of it."""
        resources = dict(share)
        request = {
            "num_cpus": resources.pop("CPU"),
            "num_gpus": resources.pop("GPU", 0),
            "resources": resources,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                placement_group=place.group, placement_group_bundle_index=place.bundle
            ),
            "runtime_env": {"env_vars": env_vars},
            "name": name,
        }
        return self.cls.options(**request, **options, **self._options).remote(
            *self.args, **self.kwargs
        )
