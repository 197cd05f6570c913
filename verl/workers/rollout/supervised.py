"""A rollout engine that outlives the death of the engine inside it."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar, cast

from verl.utils.errors import UserError, root_cause
from verl.workers.rollout.accounting import RequestLog
from verl.workers.rollout.base import (
    ComparingEngine,
    EngineDiedError,
    Generation,
    RolloutEngine,
    SamplingSettings,
    ScoringEngine,
)
from verl.workers.weight_sync import WeightUpdate

logger = logging.getLogger(__name__)

T = TypeVar("T")

# A life is one inner engine, from its start to its death; pending while it is started.
Life = Future[RolloutEngine]


class EngineGaveUpError(RuntimeError):
    """The engine died twice in a row, or could not be started anew. Another try is no use."""


class WeightsLostError(RuntimeError):
    """The engine died, and nobody on this side has the weights that it was sent."""


class TakesTransfers(Protocol):
    """One whose weights can come straight from the trainer; no other one is asked."""

    def transfer(self, stage: str, payload: Any) -> bool: ...


class SupervisedEngine:
    """A `RolloutEngine`, where its methods are described, around the ones that `build` makes.

    When the inner engine dies, a thread starts the next one with the last weights, once for all
    open requests. Those wait for it and are sent again as they were; their event loops go on. An
    engine that dies before it has completed a request since the restart is not replaced again:
    that request and every later one raise `EngineGaveUpError`.

    Locking: `_lock` guards `_life` and what belongs to it, and is held for moments, never while
    anything is awaited. Everybody who finds the engine of a life dead reports it; the first one
    puts the next life in its place, so that the others have nothing to do but wait for it.
    """

    def __init__(self, build: Callable[[], RolloutEngine], *, request_timeout_s: float) -> None:
        """`build` makes an engine that is not started; errors of its first call are raised here.

        Args:
            request_timeout_s: seconds after which a request is cancelled and raises TimeoutError.
                A request that is sent again has all of them again.
        """
        self._build = build
        self._request_timeout_s = request_timeout_s
        self._log = RequestLog()
        self._lock = threading.Lock()
        self._life: Life = Future()
        self._life.set_result(build())
        self._served: Life | None = None  # the last life that has completed a request
        self._update: WeightUpdate | None = None
        self._was_sent_weights = False
        self._past: Counter[str] = Counter()  # counters of the dead
        self._restarts = 0
        self._closed = False

    def start(self) -> None:
        """Raises EngineGaveUpError, or the UserError that the engine raises."""
        try:
            self._life.result().start()
        except UserError:
            raise
        except Exception as failure:
            raise EngineGaveUpError(f"it does not start ({root_cause(failure)})") from failure

    async def generate(
        self, prompt_ids: Sequence[int], sampling: SamplingSettings, *, trajectory_id: str
    ) -> Generation:
        """
        Raises:
            TimeoutError: it took more than `request_timeout_s`, waiting for restarts aside.
            EngineGaveUpError: see the class.
        """
        with self._log.open_request():
            while True:
                life = self._life
                engine = await _engine_of(life)
                try:
                    async with asyncio.timeout(self._request_timeout_s):
                        generation = await engine.generate(
                            prompt_ids, sampling, trajectory_id=trajectory_id
                        )
                except EngineDiedError as error:
                    self._replace(life, error)
                except TimeoutError as error:
                    self._log.count_timeout()
                    raise TimeoutError(
                        f"the engine did not answer within {self._request_timeout_s:g} s"
                    ) from error
                else:
                    if self._life is life:
                        self._served = life
                    return generation

    def release(self, trajectory_id: str) -> None:
        life = self._life
        if life.done() and life.exception() is None:  # the next engine caches nothing yet
            life.result().release(trajectory_id)

    def load_weights(self, update: WeightUpdate) -> None:
        """Also raises EngineGaveUpError."""
        while True:
            life, _ = self._on_living(lambda engine: engine.load_weights(update))
            with self._lock:
                if self._life is life:
                    self._update = update
                    return
            # it died right after, and the next one has the weights before these

    def transfer(self, stage: str, payload: Any) -> bool:
        """One stage of a transfer that brings weights straight from the trainer's memory, where
        the inner engine can (`VLLMRollout.transfer`).

        Nothing is left of it to load again: an engine that dies afterwards is not replaced here,
        and everybody gets `WeightsLostError`.
        """
        self._was_sent_weights = self._was_sent_weights or stage == "start"
        return cast(TakesTransfers, self._life.result()).transfer(stage, payload)

    def sleep(self) -> None:
        """Also raises EngineGaveUpError."""
        self._on_living(lambda engine: engine.sleep())

    def score(self, rows: Sequence[Sequence[int]]) -> list[list[float]] | None:
        """See `ScoringEngine`; None also when the inner engine is none. Raises
        EngineGaveUpError too."""

        def ask(engine: RolloutEngine) -> list[list[float]] | None:
            if not hasattr(engine, "score"):
                return None
            return cast(ScoringEngine, engine).score(rows)

        return self._on_living(ask)[1]

    def differing_weights(self) -> list[str] | None:
        """See `ComparingEngine`, of the last update; None when the inner engine is none, or when
        the weights came straight from the trainer's memory."""
        engine, update = self._life.result(), self._update
        if update is None or not hasattr(engine, "differing_weights"):
            return None
        return cast(ComparingEngine, engine).differing_weights(update)

    def stats(self) -> dict[str, float]:
        """Sums over all inner engines, `restarts`, and those of `RequestLog.counters`."""
        with self._lock:
            counters = Counter(self._past)
            life, counters["restarts"] = self._life, self._restarts
        if life.done() and life.exception() is None:
            counters.update(life.result().stats())
        return {**counters, **self._log.counters()}

    def close(self) -> None:
        """May be called again. A restart that is under way ends first."""
        with self._lock:
            self._closed = True
            life = self._life
        if life.exception() is None:
            life.result().close()

    def _on_living(self, action: Callable[[RolloutEngine], T]) -> tuple[Life, T]:
        """Do it with an engine that lives through it; returns which one, and its answer."""
        while True:
            life = self._life
            try:
                return life, action(life.result())
            except EngineDiedError as error:
                self._replace(life, error)

    def _replace(self, life: Life, error: EngineDiedError) -> None:
        """`life` is over. Returns at once; the next engine starts in a thread.

        Raises RuntimeError when the engine died because this one was closed.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError("the rollout engine is closed") from error
            if self._life is not life:
                return
            dead = life.result()
            self._past.update(dead.stats())
            died_again = self._restarts > 0 and self._served is not life
            self._restarts += not died_again
            self._life = following = Life()
            # a waiter that is cancelled must not cancel it for the others
            following.set_running_or_notify_cancel()
        logger.warning("the rollout engine died", exc_info=error)
        threading.Thread(
            target=self._begin,
            args=(following, dead, error, died_again),
            name="engine-restart",
            daemon=True,
        ).start()

    def _begin(
        self, life: Life, dead: RolloutEngine, error: EngineDiedError, died_again: bool
    ) -> None:
        try:
            _close(dead)
            if died_again:
                raise EngineGaveUpError(
                    "it was restarted and died again before it completed a request "
                    f"({root_cause(error)})"
                ) from error
            engine = self._start_next(error)
        except Exception as failure:
            logger.exception("the rollout engine is given up")
            life.set_exception(failure)
        else:
            logger.warning("the rollout engine serves again; open requests are sent once more")
            life.set_result(engine)

    def _start_next(self, death: EngineDiedError) -> RolloutEngine:
        """An engine with the last weights, after the `death` of another.

        Raises:
            WeightsLostError: nobody here has them.
            EngineGaveUpError: it does not start.
        """
        if self._was_sent_weights:
            raise WeightsLostError(
                f"the engine died ({root_cause(death)}), and with it the weights it was sent"
            ) from death
        try:
            engine = self._build()
            try:
                engine.start()
                if self._update is not None:
                    engine.load_weights(self._update)
            except Exception:
                _close(engine)
                raise
        except Exception as failure:
            raise EngineGaveUpError(
                f"it died and cannot be restarted ({root_cause(failure)})"
            ) from failure
        return engine


def _close(broken: RolloutEngine) -> None:
    """Free what it holds. It may fail at that, which must not hide why it broke."""
    try:
        broken.close()
    except Exception:
        logger.exception("a broken rollout engine did not close")


async def _engine_of(life: Life) -> RolloutEngine:
    """Waits without blocking the event loop."""
    return life.result() if life.done() else await asyncio.wrap_future(life)
