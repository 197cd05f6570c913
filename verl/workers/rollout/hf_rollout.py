"""The engine on plain transformers: a thread that owns a `ContinuousBatcher`, and its mailbox.

Everything else reaches the model through messages, so nothing here or there needs a lock around it.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from verl.config.actor import ActorRolloutRefConfig
from verl.config.plan import EnginePlan
from verl.workers.model_loading import load_causal_lm, load_tokenizer
from verl.workers.rollout.base import (
    EngineDiedError,
    Generation,
    RolloutEngine,
    SamplingSettings,
    response_tokens,
)
from verl.workers.rollout.batcher import ContinuousBatcher
from verl.workers.rollout.request import Request
from verl.workers.rollout.row_cache import ROW_ATTENTION
from verl.workers.weight_sync import WeightUpdate

logger = logging.getLogger(__name__)

T = TypeVar("T")


class HFRollout:
    """A `RolloutEngine`, where its methods are described."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_num_seqs: int,
        max_model_len: int,
    ) -> None:
        """Arguments and errors of `ContinuousBatcher`."""
        self._batcher = ContinuousBatcher(
            model, tokenizer, max_num_seqs=max_num_seqs, max_model_len=max_model_len
        )
        self._max_model_len = max_model_len
        self._noise = torch.Generator()
        self._noise.seed()
        self._messages: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._jobs: deque[tuple[Callable[[], Any], Future[Any]]] = deque()  # while nothing runs
        self._closing = threading.Lock()  # after close() no message enters the queue
        self._closed = False
        self._serving = True
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._serve, name="hf-rollout", daemon=True)

    # --- called from any thread -----------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    async def generate(
        self, prompt_ids: Sequence[int], sampling: SamplingSettings, *, trajectory_id: str
    ) -> Generation:
        request = self._request(np.asarray(prompt_ids, dtype=np.int64), sampling, trajectory_id)
        self._send(lambda: self._batcher.add(request))
        return await asyncio.wrap_future(request.future)

    def release(self, trajectory_id: str) -> None:
        if not self._closed:
            self._messages.put(lambda: self._batcher.release(trajectory_id))

    def load_weights(self, update: WeightUpdate) -> None:
        self._when_idle(lambda: self._batcher.load_weights(update))

    def score(self, rows: Sequence[Sequence[int]]) -> list[list[float]]:
        """See `ScoringEngine`. An error ends the engine, as that of a request would."""
        return self._when_idle(lambda: self._score(rows))

    def differing_weights(self, update: WeightUpdate) -> list[str]:
        """See `ComparingEngine`."""
        return self._when_idle(lambda: self._batcher.differing_weights(update))

    def sleep(self) -> None:
        """Nothing to give back: caches are small and weights stay."""

    def stats(self) -> dict[str, float]:
        return dict(vars(self._batcher.stats))

    def close(self) -> None:
        with self._closing:
            if not self._closed:
                self._closed = True
                self._messages.put(self._stop)
        if self._thread.is_alive():
            self._thread.join()

    def _send(self, message: Callable[[], None]) -> None:
        with self._closing:
            if self._closed:
                raise RuntimeError("the rollout engine is closed")
            self._messages.put(message)

    def _when_idle(self, work: Callable[[], T]) -> T:
        """Have the engine's thread do it once the running requests have finished."""
        done: Future[T] = Future()
        self._send(lambda: self._jobs.append((work, done)))
        return done.result()

    def _request(
        self, prompt_ids: np.ndarray, sampling: SamplingSettings, trajectory_id: str
    ) -> Request:
        max_tokens = response_tokens(prompt_ids, sampling, self._max_model_len)
        generator = self._noise
        if sampling.seed is not None:
            generator = torch.Generator().manual_seed(sampling.seed)
        uniforms = torch.rand(max_tokens, generator=generator).tolist()
        return Request(prompt_ids, sampling, trajectory_id, max_tokens, uniforms)

    # --- the engine's thread --------------------------------------------------------------------

    def _serve(self) -> None:
        """Until closed. An error fails every open request and every later one; nobody waits."""
        try:
            with torch.inference_mode():
                while self._serving:
                    self._take_messages()
                    started = time.perf_counter()
                    self._do_next()
                    # before a job is done, running requests finish and none begins
                    self._batcher.step(admit=not self._jobs)
                    self._batcher.stats.busy_seconds += time.perf_counter() - started
        except Exception as error:
            logger.exception("the rollout engine failed")
            self._error = error
            self._fail_open()
            while self._serving:
                self._messages.get()()
                self._fail_open()

    def _take_messages(self) -> None:
        """All that have arrived; waits for one when there is nothing else to do."""
        idle = not (self._batcher.has_work or self._jobs)
        try:
            while True:
                self._messages.get(block=idle)()
                idle = False
        except queue.Empty:
            pass

    def _do_next(self) -> None:
        if not self._jobs or self._batcher.has_running:
            return
        work, done = self._jobs.popleft()
        try:
            done.set_result(work())
        except Exception as error:
            done.set_exception(error)
            if not isinstance(error, ValueError):
                raise
            # weights that do not fit: the engine goes on with the old ones

    def _score(self, rows: Sequence[Sequence[int]]) -> list[list[float]]:
        try:
            return self._batcher.score(rows)
        except Exception as error:
            raise EngineDiedError("the rollout engine cannot score") from error

    def _stop(self) -> None:
        self._serving = False
        self._fail_open()

    def _fail_open(self) -> None:
        open_futures = [request.future for request in self._batcher.drop_all()]
        open_futures += [done for _, done in self._jobs]
        self._jobs.clear()
        for future in open_futures:
            if future.set_running_or_notify_cancel():
                error = EngineDiedError("the rollout engine does not serve any more")
                error.__cause__ = self._error
                future.set_exception(error)


def build_hf_rollout(config: ActorRolloutRefConfig, plan: EnginePlan) -> RolloutEngine:
    """`HFRollout` of `config.model`, without adapters: it is given merged weights."""
    plain = replace(config.model, lora_rank=0, attn_implementation=ROW_ATTENTION)
    model = load_causal_lm(plain, plan.dtype)
    return HFRollout(
        model.to(plan.device),  # pyright: ignore[reportArgumentType]  its wrapper hides `self`
        load_tokenizer(config.model),
        max_num_seqs=config.rollout.max_num_seqs,
        max_model_len=plan.max_model_len,
    )
