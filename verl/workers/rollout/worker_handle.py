"""One rollout worker as the driver sees it: a Ray actor, and its successor when it dies."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ObjectLostError, RayActorError

from verl.utils.errors import UserError, root_cause
from verl.utils.patience import Patience, Peer
from verl.utils.ray_utils import death_reason
from verl.workers.interfaces import Episode
from verl.workers.rollout.base import SamplingSettings
from verl.workers.rollout.supervised import WeightsLostError

logger = logging.getLogger(__name__)

# The actor's process or its node is gone, or what it had produced went with them; or its engine
# died with weights that only the trainer has.
WORKER_LOST = (RayActorError, ObjectLostError, WeightsLostError)

# `cancel` has to reach a worker whose thread is busy with a rollout.
CONTROL = "control"


class WorkerHandle:
    """A worker that is replaced when it dies, with the weights it had.

    A worker that dies twice without having delivered a trajectory in between is not replaced again.
    `ready` is there when the actor has started: only then it may be asked anything, because Ray
    may run the methods of an actor in another order than they are called.
    """

    def __init__(
        self,
        name: str,
        make_actor: Callable[[], ActorHandle],
        *,
        advice: str,
        patience: Patience,
    ) -> None:
        """`advice`: what the user can do about a worker that dies again and again."""
        self._name = name
        self._make_actor = make_actor
        self._advice = advice
        self._patience = patience
        self._closing = threading.Lock()  # after close() no actor is made
        self._closed = False
        self._weights: Callable[[], tuple[ray.ObjectRef, ...]] = tuple  # none before the first
        self._counted: dict[str, float] = {}  # counters at the last `growth`
        self._has_delivered = True  # the first one may die before it has
        self.restarts = 0
        self._begin()

    def _begin(self) -> None:
        self.actor = self._make_actor()
        self.ready = self.actor.start.remote(*self._weights())

    def peer(self, answer: Any) -> Peer:
        """The worker as the one who is waited for, for `answer`."""
        return Peer(self._name, self.actor, starts=answer is self.ready)

    def wait_until_started(self) -> None:
        self._patience.result(self.ready, self.peer(self.ready), "start")

    def call(self, method: str, *args: Any) -> ray.ObjectRef:
        return getattr(self.actor, method).remote(*args)

    def result(self, answer: ray.ObjectRef, method: str, *args: Any) -> Any:
        """What `call` returned; a worker that died is replaced and asked again.

        Raises UserError when that died as well.
        """
        while True:
            try:
                return self._patience.result(answer, self.peer(answer), method)
            except WORKER_LOST as error:
                answer = self._ask_successor(error, method, *args)

    def _ask_successor(self, error: Exception, method: str, *args: Any) -> ray.ObjectRef:
        while True:
            try:
                self.replace(error)
                self.wait_until_started()
                return self.call(method, *args)
            except WORKER_LOST as next_error:
                error = next_error

    def keep_weights(self, update: ray.ObjectRef) -> None:
        """A successor gets these. The reference keeps them in shared memory; nothing is copied."""
        self._weights = lambda: (update,)

    def ask_for_weights(self, fetch: Callable[[], ray.ObjectRef]) -> None:
        """A successor gets what `fetch` returns then: nothing is kept. It may raise UserError."""
        self._weights = lambda: (fetch(),)

    def stream(
        self, episodes: list[Episode], sampling: SamplingSettings, seed: int
    ) -> ray.ObjectRefGenerator:
        return self.actor.collect.options(num_returns="streaming").remote(episodes, sampling, seed)

    def note_delivery(self) -> None:
        self._has_delivered = True

    def replace(self, error: Exception) -> ray.ObjectRef:
        """The actor is lost; its successor begins to start. Returns `ready`.

        Raises:
            UserError: the one before was lost just so; or its weights cannot be had.
            RuntimeError: the workers are closed.
        """
        # an error of the worker's own arrives as one whose text is the remote traceback
        if isinstance(error, RayActorError):
            reason = death_reason(error)
        else:
            reason = root_cause(getattr(error, "cause", None) or error)
        with self._closing:
            if self._closed:
                raise RuntimeError("the rollout workers are closed") from error
            if not self._has_delivered:
                raise UserError(
                    f"{self._name} was restarted and died again before it finished an episode "
                    f"({reason}); {self._advice}"
                ) from error
            logger.warning("%s died and is started anew: %s", self._name, reason)
            ray.kill(self.actor)  # it may be unreachable instead of dead
            self.restarts += 1
            self._has_delivered = False
            self._counted = {}
            self._begin()
            return self.ready

    def growth(self, counters: Mapping[str, float]) -> dict[str, float]:
        """What the worker's counters grew by since the last call; those of a new one begin at 0."""
        grown = {name: value - self._counted.get(name, 0.0) for name, value in counters.items()}
        self._counted = dict(counters)
        return grown

    def cancel(self, stream: ray.ObjectRefGenerator) -> None:
        """End a rollout, whether it runs or waits for its turn. Does not wait for its end."""
        ray.cancel(stream)
        self._cancel_running()

    def begin_to_close(self) -> ray.ObjectRef:
        with self._closing:
            self._closed = True
        self._cancel_running()
        return self.actor.close.remote()

    def kill(self) -> None:
        ray.kill(self.actor)

    def _cancel_running(self) -> None:
        self.actor.cancel.options(concurrency_group=CONTROL).remote()
