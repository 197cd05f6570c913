"""A worker class with its arguments, to be started as a Ray actor."""

from __future__ import annotations

from typing import Any

from ray.actor import ActorClass, ActorHandle
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from verl.single_controller.base import ClassWithInitArgs
from verl.single_controller.ray.resource_pool import Place
from verl.utils.patience import actor_class


class RayClassWithInitArgs(ClassWithInitArgs):
    """A worker class, plain or decorated with ``@ray.remote``, and its constructor's arguments."""

    def __init__(self, cls: Any, *args: Any, **kwargs: Any) -> None:
        options: dict[str, Any] = {}
        if isinstance(cls, ActorClass):
            decorated: Any = cls
            options, cls = decorated._default_options, decorated.__ray_actor_class__
        super().__init__(actor_class(cls, **options), *args, **kwargs)

    @property
    def raw_cls(self) -> type:
        """The class without Ray."""
        return self.cls.__ray_actor_class__

    def start(
        self, place: Place, share: dict[str, float], env_vars: dict[str, str], name: str
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
        return self.cls.options(**request).remote(*self.args, **self.kwargs)
