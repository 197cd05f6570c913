"""Waiting for Ray workers: never without a word, and never for ever for one that is stuck."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError

logger = logging.getLogger(__name__)

# The concurrency group in which an actor answers while its methods work.
HEARTBEAT = "heartbeat"
SLICE_S = 1.0  # between two looks
START_S = 600.0  # a process that starts loads libraries, and answers nobody meanwhile
DEATH_KNOWN_S = 60.0  # longer than Ray takes to give a machine up
NAMES_SHOWN = 4


def actor_class(cls: type, **options: Any) -> Any:
    """`cls` as Ray actors that answer while they work. `options`: of `ray.remote`."""
    groups = {HEARTBEAT: 1, **(options.pop("concurrency_groups", None) or {})}
    remote: Any = ray.remote  # whose types have no concurrency groups
    return remote(concurrency_groups=groups, **options)(cls)


class Peer(NamedTuple):
    """A worker that somebody waits for, made with `actor_class`. `starts`: it is not up yet."""

    name: str
    actor: ActorHandle
    starts: bool = False


class StallLimits(Protocol):
    """The settings of a run, `trainer.*`."""

    stall_warning_s: float
    stall_limit_s: float


@dataclass(frozen=True)
class Patience:
    """After `warning_s` of waiting it is said for whom, and whether they answer; one that has not
    answered for `limit_s` after that is killed, which ends the wait with a RayActorError.

    A worker that answers may work for as long as it likes.
    """

    warning_s: float = 120.0
    limit_s: float = 600.0

    @classmethod
    def of(cls, run: StallLimits) -> Patience:
        return cls(run.stall_warning_s, run.stall_limit_s)

    def first(self, awaited: Mapping[Any, Peer], what: str) -> Any:
        """The first of the references or streams that is ready. `what` the peers do."""
        watch = _Watch(self, what)
        while True:
            ready, _ = ray.wait(list(awaited), num_returns=1, timeout=SLICE_S)
            if ready:
                return ready[0]
            watch.look(set(awaited.values()))

    def results(self, answers: Mapping[Any, Peer], what: str) -> list[Any]:
        """What all of them refer to, in order. The first error of a peer is raised at once: the
        others may be waiting for that peer."""
        left, results = dict(answers), {}
        while left:
            answer = self.first(left, what)
            results[answer] = ray.get(answer)
            del left[answer]
        return [results[answer] for answer in answers]

    def result(self, answer: ray.ObjectRef, peer: Peer, what: str) -> Any:
        """What `answer` refers to. Raises what the peer raised."""
        return ray.get(self.first({answer: peer}, what))


@dataclass
class _Watch:
    """One wait. Nobody is asked anything before it has lasted for long."""

    patience: Patience
    what: str
    began: float = field(default_factory=time.monotonic)
    asked: dict[Peer, tuple[ray.ObjectRef, float]] = field(default_factory=dict)
    next_word: float | None = None  # seconds after `began`

    def look(self, peers: Collection[Peer]) -> None:
        waited = time.monotonic() - self.began
        if waited < self.patience.warning_s:
            return
        silent = {peer: seconds for peer in peers if (seconds := self._silence(peer)) > 0}
        if self.next_word is None:
            self.next_word = waited + SLICE_S  # what was asked just now may be answered until then
        elif waited >= self.next_word:
            self.next_word = 2 * waited
            self._tell(waited, peers, silent)
        for peer, seconds in silent.items():
            if seconds >= self._limit(peer):
                logger.error("%s has not answered for %.0f s and is killed", peer.name, seconds)
                ray.kill(peer.actor)

    def _silence(self, peer: Peer) -> float:
        """For how many seconds the peer has not answered. An answer is followed by a question."""
        now = time.monotonic()
        if peer in self.asked:
            answer, since = self.asked[peer]
            if not ray.wait([answer], timeout=0)[0]:
                return now - since
        self.asked[peer] = _ask(peer), now
        return 0.0

    def _limit(self, peer: Peer) -> float:
        return max(self.patience.limit_s, START_S if peer.starts else 0.0)

    def _tell(self, waited: float, peers: Collection[Peer], silent: Mapping[Peer, float]) -> None:
        if silent:
            peer = max(silent, key=silent.__getitem__)
            logger.warning(
                "waiting for %s since %.0f s: no answer from %s for %.0f s; who does not answer "
                "for %.0f s is killed",
                self.what,
                waited,
                _names(silent),
                silent[peer],
                self._limit(peer),
            )
        else:
            logger.warning(
                "waiting for %s since %.0f s: %s at work", self.what, waited, _names(peers)
            )


def first_death(peers: Iterable[Peer]) -> tuple[Peer, RayActorError] | None:
    """One of the peers that is dead, and how. Returns at once when all of them answer; that one's
    machine is gone is known only when Ray's patience with it is over."""
    answers = {_ask(peer): peer for peer in peers}
    left = list(answers)
    until = time.monotonic() + DEATH_KNOWN_S
    while left:
        ready, left = ray.wait(left, timeout=max(0.0, until - time.monotonic()))
        if not ready:
            return None
        try:
            ray.get(ready)
        except RayActorError as error:
            return answers[ready[0]], error
    return None


def _ask(peer: Peer) -> ray.ObjectRef:
    """A question that it answers while it works."""
    ask = peer.actor.__ray_call__.options(concurrency_group=HEARTBEAT)
    return ask.remote(_is_alive)


def _is_alive(worker: Any) -> bool:
    return True


def _names(peers: Collection[Peer]) -> str:
    names = sorted(peer.name for peer in peers)
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more
