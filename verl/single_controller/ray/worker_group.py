"""RayWorkerGroup: workers as Ray actors."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tensordict import TensorDict

from verl.protocol import DataProto
from verl.single_controller.base import WorkerGroup
from verl.single_controller.base.decorator import Execute, Registration
from verl.single_controller.base.rendezvous import find_free_port
from verl.single_controller.ray.resource_pool import Place, RayResourcePool
from verl.single_controller.ray.worker_class import RayClassWithInitArgs
from verl.utils.errors import WorkerDiedError
from verl.utils.patience import Patience, Peer, first_death
from verl.utils.ray_utils import death_reason, parallel_put

_PROBE_S = 300.0  # for a task on another node to start and end


def _free_address() -> tuple[str, str]:
    return ray.util.get_node_ip_address().strip("[]"), str(find_free_port())


def _meeting_point(node_id: str) -> tuple[str, str]:
    """Address and free port on a node. Only that node can tell which of its ports are free."""
    if node_id == ray.get_runtime_context().get_node_id():
        return _free_address()
    on_node = NodeAffinitySchedulingStrategy(node_id, soft=False)
    probe = ray.remote(num_cpus=0)(_free_address).options(scheduling_strategy=on_node)
    return ray.get(probe.remote(), timeout=_PROBE_S)


def _died(peer: Peer, error: RayActorError, method: str) -> WorkerDiedError:
    return WorkerDiedError(f"{peer.name} died during {method} ({death_reason(error)})")


class RayWorkerGroup(WorkerGroup):
    """Starts one actor on each place of a pool and calls them together.

    An exception in a worker is raised by the call that caused it, with the worker's traceback, even
    while other workers are still busy. A worker that died raises ``WorkerDiedError``.
    """

    def __init__(
        self,
        resource_pool: RayResourcePool,
        ray_cls_with_init: RayClassWithInitArgs,
        bin_pack: bool = True,
        name_prefix: str | None = None,
        worker_handles: list[ActorHandle] | None = None,
        device_name: str | None = None,
        worker_env: dict[str, str] | None = None,
        colocated_key: str | None = None,
        patience: Patience | None = None,
    ) -> None:
        """Start workers on `resource_pool`, or take over those given.

        Args:
            bin_pack: all workers of one entry of the pool must be on one node.
            name_prefix: of the actors' names; by default unique.
            device_name: ``cuda``, ``npu`` or ``cpu``; by default what the pool holds.
            worker_env: environment variables of the worker processes.
            colocated_key: which of several colocated workers this group talks to.
            patience: with workers that are busy or stuck.

        Raises:
            ValueError: `worker_env` sets a variable that the group itself sets.
            UserError: the cluster cannot provide the places.
        """
        super().__init__()
        self.resource_pool = resource_pool
        self.ray_cls_with_init = ray_cls_with_init
        self.name_prefix = name_prefix or uuid.uuid4().hex[:6]
        self.device_name = device_name
        self._colocated_key = colocated_key
        self._patience = patience or Patience()
        self._is_up = False  # until every worker has answered once
        if worker_handles is not None:
            self._workers = list(worker_handles)
        else:
            places = resource_pool.places("STRICT_PACK" if bin_pack else "PACK", device_name)
            self._workers = self._started(places, worker_env or {})
        self._bind_worker_methods(self._worker_class())

    # --- starting -------------------------------------------------------------------------------

    def _started(self, places: list[Place], worker_env: dict[str, str]) -> list[ActorHandle]:
        meeting_point = _meeting_point(places[0].node_id)
        share = self.resource_pool.share(self.device_name)
        workers = []
        for rank, place in enumerate(places):
            own_env = self._environment(rank, len(places), place, meeting_point)
            taken = sorted(own_env.keys() & worker_env.keys())
            if taken:
                raise ValueError(f"worker_env may not set {taken}: the worker group sets them")
            name = f"{self.name_prefix}_{self.ray_cls_with_init.raw_cls.__name__}_{rank}"
            workers.append(self.ray_cls_with_init.start(place, share, worker_env | own_env, name))
        return workers

    def _environment(
        self, rank: int, world_size: int, place: Place, meeting_point: tuple[str, str]
    ) -> dict[str, str]:
        # Ray shows a worker its own accelerator only, so that the device's index is 0 everywhere.
        hidden = self.resource_pool.accelerator(self.device_name) is not None
        return {
            "RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "LOCAL_RANK": "0" if hidden else str(place.local_rank),
            "LOCAL_WORLD_SIZE": str(place.local_world_size),
            "RAY_LOCAL_RANK": str(place.local_rank),
            "RAY_LOCAL_WORLD_SIZE": str(place.local_world_size),
            "MASTER_ADDR": meeting_point[0],
            "MASTER_PORT": meeting_point[1],
        }

    # --- colocated workers ----------------------------------------------------------------------

    def _worker_class(self) -> type:
        raw_cls: Any = self.ray_cls_with_init.raw_cls
        return (
            raw_cls if self._colocated_key is None else raw_cls.class_dict[self._colocated_key].cls
        )

    def spawn(self, prefix_set: Iterable[str]) -> dict[str, RayWorkerGroup]:
        """One group for each key of :func:`create_colocated_worker_cls`, on the same processes."""
        return {
            key: RayWorkerGroup(
                self.resource_pool,
                self.ray_cls_with_init,
                name_prefix=self.name_prefix,
                worker_handles=self._workers,
                device_name=self.device_name,
                colocated_key=key,
                patience=self._patience,
            )
            for key in prefix_set
        }

    # --- executing ------------------------------------------------------------------------------

    def execute(self, registration: Registration, method: str, args: tuple, kwargs: dict) -> Any:
        """See :class:`WorkerGroup`; rank 0 alone takes the arguments as they are."""
        if registration.execute_mode is Execute.RANK_ZERO:
            return self.execute_rank_zero_sync(method, *args, **kwargs)
        return self.execute_all_sync(method, *args, **kwargs)

    def execute_all_sync(self, method_name: str, *args: Any, **kwargs: Any) -> list:
        """Call a method of every worker, registered or not; the results in rank order.

        If every argument is a list with one entry a worker, each gets its own; else all get all.
        A batch travels once, however many workers get it.
        """
        calls = self._calls(args, kwargs)
        batches = {
            id(value): value
            for call_args, call_kwargs in calls
            for value in (*call_args, *call_kwargs.values())
            if isinstance(value, DataProto | TensorDict)
        }
        stored = {}
        if batches:
            stored = dict(zip(batches, parallel_put(list(batches.values())), strict=True))

        def sent(value: Any) -> Any:
            return stored.get(id(value), value)

        answers = [
            self._call(
                worker,
                method_name,
                tuple(map(sent, call_args)),
                {key: sent(value) for key, value in call_kwargs.items()},
            )
            for worker, (call_args, call_kwargs) in zip(self._workers, calls, strict=True)
        ]
        return self._results(answers, method_name)

    def execute_rank_zero_sync(self, method_name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of rank 0, registered or not, and return its result."""
        answer = self._call(self._workers[0], method_name, args, kwargs)
        return self._results([answer], method_name)[0]

    def _results(self, answers: list[ray.ObjectRef], method: str) -> list:
        """Of the first workers, in rank order; the first error is raised at once."""
        left = {
            answer: Peer(f"training rank {rank}", worker, starts=not self._is_up)
            for rank, (answer, worker) in enumerate(zip(answers, self._workers, strict=False))
        }
        results = {}
        while left:
            answer = self._patience.first(left, method)
            peer = left.pop(answer)
            try:
                results[answer] = ray.get(answer)
            except RayTaskError as error:
                # when a rank is gone, the others fail in their collectives before Ray knows it
                if (found := first_death(left.values())) is not None:
                    raise _died(*found, method) from error
                raise
            except RayActorError as error:
                if error.actor_init_failed:
                    raise  # its own mistake
                raise _died(peer, error, method) from error
        self._is_up = True
        return [results[answer] for answer in answers]

    def _call(self, worker: ActorHandle, method: str, args: tuple, kwargs: dict) -> ray.ObjectRef:
        if self._colocated_key is None:
            return getattr(worker, method).remote(*args, **kwargs)
        return worker.call_colocated.remote(self._colocated_key, method, *args, **kwargs)

    def _calls(self, args: tuple, kwargs: dict[str, Any]) -> list[tuple[tuple, dict]]:
        """Each worker's args and kwargs: its own entries, if all are lists with one a worker."""
        size = self.world_size
        values = [*args, *kwargs.values()]
        if values and all(isinstance(v, list) and len(v) == size for v in values):
            return [
                (tuple(arg[i] for arg in args), {key: val[i] for key, val in kwargs.items()})
                for i in range(size)
            ]
        return [(args, kwargs)] * size

    @property
    def workers(self) -> list[ActorHandle]:
        """The actors in rank order."""
        return self._workers
