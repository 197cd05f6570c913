"""A rollout engine that only takes the time a real one would, chosen by import path.

Its "model" is a file of latencies, which `benchmarks/rollout.py calibrate` measures on a real
engine; the tokenizer comes from `model.tokenizer_path`.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

import numpy as np

from verl.config.actor import ActorRolloutRefConfig
from verl.config.plan import EnginePlan
from verl.workers.model_loading import load_tokenizer
from verl.workers.rollout.base import Generation, RolloutEngine, SamplingSettings
from verl.workers.weight_sync import WeightUpdate

ANSWER = "<think> I look first. </think><action>look around</action>"


@dataclass(frozen=True)
class Latencies:
    """`decode_ms[i]`: milliseconds of one decoding step of `together[i]` requests (rising).

    `prefill_tokens_per_s`: prompt tokens a second. `measured_on`: what was measured, where, when.
    """

    together: tuple[int, ...]
    decode_ms: tuple[float, ...]
    prefill_tokens_per_s: float
    measured_on: str

    def step_seconds(self, running: int) -> float:
        """One decoding step of `running` requests, interpolated; beyond the table, by slope."""
        if running > self.together[-1]:
            return self.decode_ms[-1] / 1000 * running / self.together[-1]
        return float(np.interp(running, self.together, self.decode_ms)) / 1000

    @classmethod
    def read(cls, path: str | Path) -> Latencies:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        values["together"] = tuple(values["together"])
        values["decode_ms"] = tuple(values["decode_ms"])
        return cls(**values)

    def write(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


class DecodeClock:
    """Counts decoding steps. It runs slower the more requests share it, and stands in prefills."""

    def __init__(self, latencies: Latencies) -> None:
        self._latencies = latencies
        self._read_at = 0.0
        self._stands_until = 0.0
        self.steps = 0.0

    def read(self, now: float, running: int) -> float:
        """Steps up to `now` (seconds), with `running` requests since the last call."""
        started = max(self._read_at, self._stands_until)
        if running and now > started:
            self.steps += (now - started) / self._latencies.step_seconds(running)
        self._read_at = now
        return self.steps

    def prefill(self, now: float, tokens: int) -> None:
        """No request is decoded while `tokens` are computed."""
        seconds = tokens / self._latencies.prefill_tokens_per_s
        self._stands_until = max(self._stands_until, now) + seconds

    def when(self, steps: float, running: int) -> float:
        """The time at which the counter will show `steps`, as far as is known now."""
        wait = max(steps - self.steps, 0.0) * self._latencies.step_seconds(running)
        return max(self._read_at, self._stands_until) + wait


class SimulatedEngine:
    """A `RolloutEngine` whose responses have half to all of `max_tokens` tokens, by their seed.

    Continuous batching with a cache of each trajectory's last prompt and response: a prompt must
    continue them, as it does in the `trajectory` context.
    """

    def __init__(self, latencies: Latencies, answer_ids: Sequence[int], max_num_seqs: int) -> None:
        self._clock = DecodeClock(latencies)
        self._answer_ids = tuple(answer_ids)
        self._places = asyncio.Semaphore(max_num_seqs)
        self._open: list[tuple[float, int, asyncio.Future[None]]] = []  # a heap by the last step
        self._numbers = count()
        self._timer: asyncio.TimerHandle | None = None
        self._known: dict[str, int] = {}
        self._version = 0
        self._totals = {"generated_tokens": 0, "prefilled_tokens": 0, "cache_hit_tokens": 0}

    def start(self) -> None:
        """Nothing to load."""

    async def generate(
        self, prompt_ids: Sequence[int], sampling: SamplingSettings, *, trajectory_id: str
    ) -> Generation:
        length = random.Random(sampling.seed).randint(sampling.max_tokens // 2, sampling.max_tokens)
        length = max(length, len(self._answer_ids))
        cached = min(self._known.get(trajectory_id, 0), len(prompt_ids) - 1)
        async with self._places:
            await self._spend(len(prompt_ids) - cached, length)
        self._known[trajectory_id] = len(prompt_ids) + length - 1
        self._count(prefilled=len(prompt_ids) - cached, cached=cached, generated=length)
        ids = (self._answer_ids[0],) * (length - len(self._answer_ids)) + self._answer_ids
        return Generation(ids, (-1.0,) * length, "stop", self._version)

    def release(self, trajectory_id: str) -> None:
        self._known.pop(trajectory_id, None)

    def load_weights(self, update: WeightUpdate) -> None:
        self._version = update.version

    def sleep(self) -> None:
        """Nothing to give back."""

    def stats(self) -> dict[str, float]:
        return dict(self._totals)

    def close(self) -> None:
        """Nothing to end."""

    def _count(self, *, prefilled: int, cached: int, generated: int) -> None:
        self._totals["prefilled_tokens"] += prefilled
        self._totals["cache_hit_tokens"] += cached
        self._totals["generated_tokens"] += generated

    async def _spend(self, prompt_tokens: int, response_tokens: int) -> None:
        """Wait as long as a request of so many new tokens would take beside the others."""
        now = time.perf_counter()
        steps = self._clock.read(now, len(self._open))
        self._clock.prefill(now, prompt_tokens)
        done = asyncio.get_running_loop().create_future()
        heapq.heappush(self._open, (steps + response_tokens, next(self._numbers), done))
        self._set_timer()
        await done

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if self._open:
            due = self._clock.when(self._open[0][0], len(self._open))
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(due - time.perf_counter(), 0), self._finish_due)

    def _finish_due(self) -> None:
        steps = self._clock.read(time.perf_counter(), len(self._open))
        while self._open and self._open[0][0] <= steps:
            _, _, done = heapq.heappop(self._open)
            if not done.done():  # cancelled ones decode to their end, as nobody misses them
                done.set_result(None)
        self._set_timer()


def build_simulated(config: ActorRolloutRefConfig, plan: EnginePlan) -> RolloutEngine:
    """`SimulatedEngine` with the latencies in the file `config.model.path`."""
    answer_ids = load_tokenizer(config.model).encode(ANSWER, add_special_tokens=False)
    latencies = Latencies.read(config.model.path)
    return SimulatedEngine(latencies, answer_ids, config.rollout.max_num_seqs)
