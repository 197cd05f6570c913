"""An engine that dies, hangs or does not come back, inside a `SupervisedEngine`."""

import asyncio
import itertools
import threading
import time
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verl.workers.rollout.accounting import RequestLog, engine_metrics
from verl.workers.rollout.base import EngineDiedError, Generation
from verl.workers.rollout.supervised import EngineGaveUpError, SupervisedEngine, WeightsLostError
from verl.workers.weight_sync import WeightUpdate

from ...waiting import until

UPDATE = WeightUpdate(7, {"w": ("uint8", (1,), np.zeros(1, np.uint8))})
NEVER = 10**9
PATIENCE_S = 30.0


@dataclass(frozen=True)
class Sampling:
    seed: int = 0


class FakeEngine:
    """Answers a request with its prompt and seed. Dies at its `dies_at`-th request, and with it
    every open one fails. One that `waits` starts when `may_start` is set."""

    def __init__(self, *, dies_at=NEVER, delay_s=0.0, start_s=0.0, waits=False, fails_to=()):
        self.dies_at, self.delay_s, self.start_s, self.fails_to = (
            dies_at, delay_s, start_s, fails_to,
        )  # fmt: skip
        self.starts, self.may_start = threading.Event(), threading.Event()
        if not waits:
            self.may_start.set()
        self.started = self.closed = self.dead = self.asleep = False
        self.version = 0
        self.loaded = []
        self.requests, self.cancelled, self.released = [], [], []

    def start(self):
        self.starts.set()
        assert self.may_start.wait(PATIENCE_S), "the others did not get on"
        time.sleep(self.start_s)
        if "start" in self.fails_to:
            raise MemoryError("no room for the cache")
        self.started = True

    async def generate(self, prompt_ids, sampling, *, trajectory_id):
        assert self.started and not self.asleep
        if self.closed:
            raise RuntimeError("closed")
        self.requests.append(trajectory_id)
        self.dead = self.dead or len(self.requests) >= self.dies_at
        try:
            await asyncio.sleep(self.delay_s)
        except asyncio.CancelledError:
            self.cancelled.append(trajectory_id)
            raise
        if self.dead or self.closed:
            raise EngineDiedError("it serves no more") from IndexError("index out of\n range")
        return Generation((*prompt_ids, sampling.seed), (), "stop", self.version)

    def release(self, trajectory_id):
        self.released.append(trajectory_id)

    def load_weights(self, update):
        if "load" in self.fails_to:
            self.dead = True
        if self.dead:
            raise EngineDiedError("it died while loading")
        if update.version < 0:
            raise ValueError("unknown weight 'x'")
        self.asleep = False
        self.version = update.version
        self.loaded.append(update)

    def transfer(self, stage, payload):
        self.version = payload
        return True

    def sleep(self):
        if self.dead:
            raise EngineDiedError("it died before it slept")
        self.asleep = True

    def stats(self):
        return {"generated_tokens": len(self.requests), "busy_seconds": 1e6}

    def close(self):
        self.closed = True


def supervise(*engines, request_timeout_s=60.0):
    """The engines in the order in which they are built; one too many is an error."""
    supply = iter(engines)
    engine = SupervisedEngine(lambda: next(supply), request_timeout_s=request_timeout_s)
    engine.start()
    return engine


def ask(engine, number):
    return engine.generate([number], Sampling(number + 1000), trajectory_id=f"t{number}")


def ask_all(engine, count):
    async def run():
        return await asyncio.gather(*(ask(engine, n) for n in range(count)), return_exceptions=True)

    return asyncio.run(run())


def answers(results):
    return [result.token_ids for result in results]


def test_a_healthy_engine_is_only_passed_through():
    inner = FakeEngine()
    engine = supervise(inner)
    engine.load_weights(UPDATE)
    [result] = ask_all(engine, 1)
    engine.release("t0")
    assert result == Generation((0, 1000), (), "stop", 7)
    assert inner.released == ["t0"]
    engine.sleep()
    assert inner.asleep
    engine.close()
    engine.close()
    assert inner.closed


def test_open_requests_are_sent_again_with_the_last_weights():
    first, second = FakeEngine(dies_at=5, delay_s=0.01), FakeEngine()
    engine = supervise(first, second)
    engine.load_weights(UPDATE)
    results = ask_all(engine, 8)
    assert answers(results) == [(n, n + 1000) for n in range(8)]
    assert {result.weight_version for result in results} == {7}
    assert first.closed and not second.closed
    assert second.loaded == [UPDATE]
    assert second.loaded[0] is UPDATE  # no copy
    assert sorted(second.requests) == [f"t{n}" for n in range(8)]
    stats = engine.stats()
    assert (stats["restarts"], stats["requests"], stats["timeouts"]) == (1, 8, 0)
    assert stats["generated_tokens"] == 8 + 8  # of the dead one and of its successor


def test_without_weights_the_next_engine_starts_with_its_own():
    second = FakeEngine()
    ask_all(supervise(FakeEngine(dies_at=1), second), 1)
    assert second.loaded == []


def test_the_event_loop_goes_on_during_a_restart():
    second = FakeEngine(waits=True)
    engine = supervise(FakeEngine(dies_at=1), second)

    async def run():
        request = asyncio.create_task(ask(engine, 0))
        await until(second.starts.is_set)
        second.may_start.set()  # which a loop that waits for the start could not do
        return (await request).token_ids

    assert asyncio.run(run()) == (0, 1000)


def test_waiting_for_a_restart_does_not_count_against_the_limit():
    engine = supervise(FakeEngine(dies_at=1), FakeEngine(start_s=0.4), request_timeout_s=0.1)
    assert answers(ask_all(engine, 2)) == [(0, 1000), (1, 1001)]
    assert engine.stats()["timeouts"] == 0


def test_an_engine_may_die_again_once_it_has_served():
    engines = [FakeEngine(dies_at=3) for _ in range(3)]
    engine = supervise(*engines, FakeEngine())
    for number in range(8):
        assert answers(ask_all(engine, 1)) == [(0, 1000)], number
    assert engine.stats()["restarts"] == 3


def test_a_second_death_in_a_row_reaches_everybody():
    first, second = FakeEngine(dies_at=3, delay_s=0.01), FakeEngine(dies_at=1, delay_s=0.01)
    engine = supervise(first, second)
    results = ask_all(engine, 6)
    assert {type(result) for result in results} == {EngineGaveUpError}
    assert "restarted and died again before it completed a request" in str(results[0])
    assert "(IndexError: index out of range)" in str(results[0])  # on one line
    assert first.closed and second.closed
    with pytest.raises(EngineGaveUpError):
        asyncio.run(ask(engine, 9))
    with pytest.raises(EngineGaveUpError):
        engine.load_weights(UPDATE)
    engine.release("t0")
    assert engine.stats()["restarts"] == 1
    engine.close()


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (FakeEngine(fails_to=["start"]), "MemoryError: no room for the cache"),
        (FakeEngine(fails_to=["load"]), "EngineDiedError: it died while loading"),
    ],
)
def test_a_restart_that_fails_reaches_everybody(broken, reason):
    engine = supervise(FakeEngine(dies_at=2), broken)
    engine.load_weights(UPDATE)
    results = ask_all(engine, 4)
    assert {type(result) for result in results} == {EngineGaveUpError}
    assert f"cannot be restarted ({reason})" in str(results[0])
    assert broken.closed


def test_an_engine_that_does_not_start_says_why():
    engine = SupervisedEngine(lambda: FakeEngine(fails_to=["start"]), request_timeout_s=1)
    with pytest.raises(EngineGaveUpError, match=r"not start \(MemoryError: no room for the cache"):
        engine.start()


def test_a_dead_engine_that_does_not_close_is_replaced_all_the_same(caplog):
    class Stuck(FakeEngine):
        def close(self):
            raise OSError("no such process")

    engine = supervise(Stuck(dies_at=1), FakeEngine())
    assert answers(ask_all(engine, 1)) == [(0, 1000)]
    assert "a broken rollout engine did not close" in caplog.text


def test_a_request_past_its_limit_is_cancelled_and_counted():
    inner = FakeEngine(delay_s=30)
    engine = supervise(inner, request_timeout_s=0.05)
    [result] = ask_all(engine, 1)
    assert type(result) is TimeoutError
    assert "did not answer within 0.05 s" in str(result)
    assert inner.cancelled == ["t0"]
    stats = engine.stats()
    assert (stats["timeouts"], stats["restarts"]) == (1, 0)
    inner.delay_s = 0
    assert answers(ask_all(engine, 1)) == [(0, 1000)]  # the engine goes on


def test_a_cancelled_waiter_leaves_the_restart_to_the_others():
    first, second = FakeEngine(dies_at=2, delay_s=0.01), FakeEngine(waits=True)
    engine = supervise(first, second)

    async def run():
        requests = [asyncio.create_task(ask(engine, n)) for n in range(4)]
        await until(second.starts.is_set)
        requests[0].cancel()
        requests[1].cancel()
        second.may_start.set()
        return await asyncio.gather(*requests, return_exceptions=True)

    results = asyncio.run(run())
    assert [type(result) for result in results[:2]] == [asyncio.CancelledError] * 2
    assert answers(results[2:]) == [(2, 1002), (3, 1003)]


def test_a_cancelled_request_is_cancelled_inside():
    inner = FakeEngine(delay_s=30)
    engine = supervise(inner)

    async def run():
        request = asyncio.create_task(ask(engine, 0))
        await until(lambda: inner.requests)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)

    asyncio.run(run())
    assert inner.cancelled == ["t0"]


def test_a_death_between_rollouts_is_found_when_weights_come():
    first, second = FakeEngine(), FakeEngine()
    engine = supervise(first, second)
    engine.load_weights(WeightUpdate(6, {}))
    first.dead = True
    engine.load_weights(UPDATE)
    assert [update.version for update in second.loaded] == [6, 7]
    assert ask_all(engine, 1)[0].weight_version == 7


def test_a_death_is_found_when_it_shall_sleep():
    first, second = FakeEngine(), FakeEngine()
    engine = supervise(first, second)
    first.dead = True
    engine.sleep()
    assert second.asleep


class ScoringFake(FakeEngine):
    """Scores a row with the version of its weights; a tensor named after that differs."""

    def score(self, rows):
        if self.dead:
            raise EngineDiedError("it died before it scored")
        return [[float(self.version)] * len(row) for row in rows]

    def differing_weights(self, update):
        return [f"w{update.version}"]


def test_what_an_engine_cannot_do_is_none():
    engine = supervise(FakeEngine())
    engine.load_weights(UPDATE)
    assert engine.score([[1, 2]]) is None
    assert engine.differing_weights() is None


def test_scores_are_those_of_the_last_weights_also_after_a_death():
    first, second = ScoringFake(), ScoringFake()
    engine = supervise(first, second)
    assert engine.differing_weights() is None  # nothing was sent yet
    engine.load_weights(UPDATE)
    assert engine.score([[1, 2]]) == [[7.0, 7.0]]
    assert engine.differing_weights() == ["w7"]
    first.dead = True
    assert engine.score([[1, 2]]) == [[7.0, 7.0]]
    assert second.loaded == [UPDATE]


def test_weights_that_do_not_fit_are_not_loaded_again():
    first, second = FakeEngine(), FakeEngine()
    engine = supervise(first, second)
    engine.load_weights(UPDATE)
    with pytest.raises(ValueError, match="unknown weight"):
        engine.load_weights(WeightUpdate(-1, {}))
    first.dead = True
    ask_all(engine, 1)
    assert second.loaded == [UPDATE]


def test_weights_that_were_sent_directly_cannot_be_loaded_again():
    """Going on with the weights that an engine starts with would be wrong: others replace it."""
    engine = supervise(FakeEngine(dies_at=2), FakeEngine())
    assert engine.transfer("start", 3) is True
    assert ask_all(engine, 1)[0].weight_version == 3
    [result] = ask_all(engine, 1)
    assert type(result) is WeightsLostError
    assert "the engine died (IndexError: index out of range)" in str(result)


def test_requests_that_are_open_at_close_do_not_restart_it():
    inner = FakeEngine(delay_s=0.1)
    engine = supervise(inner)  # a second one would raise StopIteration

    async def run():
        request = asyncio.create_task(ask(engine, 0))
        await until(lambda: inner.requests)
        await asyncio.to_thread(engine.close)
        return await asyncio.gather(request, return_exceptions=True)

    [result] = asyncio.run(run())
    assert type(result) is RuntimeError
    assert "closed" in str(result)
    assert engine.stats()["restarts"] == 0


def test_closing_during_a_restart_closes_what_it_starts():
    second = FakeEngine(waits=True)
    engine = supervise(FakeEngine(dies_at=1), second)

    async def run():
        request = asyncio.create_task(ask(engine, 0))
        await until(second.starts.is_set)
        closing = asyncio.create_task(asyncio.to_thread(engine.close))
        await until(lambda: engine._closed)
        second.may_start.set()
        await closing
        await asyncio.gather(request, return_exceptions=True)

    asyncio.run(run())
    assert second.started and second.closed


@settings(max_examples=40)
@given(
    deaths=st.lists(st.integers(2, 25), max_size=4),
    count=st.integers(1, 60),
    at_once=st.integers(1, 20),
    seed=st.integers(0, 1000),
)
def test_every_request_is_answered_exactly_once(deaths, count, at_once, seed):
    """Whenever engines die, as long as each serves somebody: as many as `at_once` are open."""
    rng = np.random.default_rng(seed)
    # an engine that dies at its n-th request has served none when n are open at once
    lives = [FakeEngine(dies_at=at_once + n, delay_s=0.0005) for n in deaths]
    engine = supervise(*lives, FakeEngine(), request_timeout_s=10)
    answered = []

    async def client(number, room):
        async with room:
            await asyncio.sleep(float(rng.random()) * 0.001)
            result = await ask(engine, number)
            answered.append(number)
            assert result.token_ids == (number, number + 1000)

    async def run():
        room = asyncio.Semaphore(at_once)
        await asyncio.gather(*(client(n, room) for n in range(count)))

    asyncio.run(run())
    assert sorted(answered) == list(range(count))
    stats = engine.stats()
    assert stats["requests"] == count
    assert stats["restarts"] == sum(life.closed for life in lives)


def test_weights_loaded_from_another_thread_while_engines_die():
    """Nobody is left waiting, and the last weights are those in use."""
    engine = supervise(*(FakeEngine(dies_at=30, delay_s=0.001) for _ in range(40)))
    stop = threading.Event()

    def publish():
        for version in itertools.count(1):
            engine.load_weights(WeightUpdate(version, {}))
            time.sleep(0.002)
            if stop.is_set():
                return

    publisher = threading.Thread(target=publish)
    publisher.start()

    async def client(numbers):
        return [(await ask(engine, number)).weight_version for number in numbers]

    async def run():
        return await asyncio.gather(*(client(range(50)) for _ in range(6)))

    versions = asyncio.run(asyncio.wait_for(run(), 30))
    stop.set()
    publisher.join(10)
    assert not publisher.is_alive()
    assert all(len(of_client) == 50 for of_client in versions)
    assert engine.stats()["restarts"] >= 300 // 30 - 1
    engine.load_weights(WeightUpdate(10_000, {}))
    assert ask_all(engine, 1)[0].weight_version == 10_000


def test_busy_seconds_are_those_with_an_open_request():
    engine = supervise(FakeEngine(delay_s=0.1))
    assert engine.stats()["busy_seconds"] == 0
    began = time.monotonic()
    ask_all(engine, 3)
    took = time.monotonic() - began
    busy = engine.stats()["busy_seconds"]
    assert 0.1 <= busy <= took  # together, not 0.3 s one after the other
    assert engine.stats()["busy_seconds"] == busy  # time alone adds nothing


def test_an_open_request_counts_until_now():
    log = RequestLog()
    with log.open_request():
        time.sleep(0.02)
        assert log.counters()["busy_seconds"] >= 0.02
    assert log.counters()["requests"] == 1


def counters(**values):
    names = ("generated_tokens", "prefilled_tokens", "cache_hit_tokens")
    engine = {f"engine/{name}": 0.0 for name in (*names, "restarts", "timeouts", "busy_seconds")}
    return engine | {"env/replacements": 0.0, "env/loaded_ahead": 0.0} | values


def test_metrics_of_two_workers():
    first = counters(**{
        "engine/generated_tokens": 300.0, "engine/prefilled_tokens": 100.0,
        "engine/cache_hit_tokens": 200.0, "engine/busy_seconds": 4.0, "engine/restarts": 1.0,
    })  # fmt: skip
    second = counters(**{
        "engine/generated_tokens": 100.0, "engine/prefilled_tokens": 100.0,
        "engine/busy_seconds": 8.0, "engine/timeouts": 2.0, "env/replacements": 3.0,
        "env/loaded_ahead": 6.0,
    })  # fmt: skip
    assert engine_metrics([first, second], seconds=10.0) == {
        "rollout/generated_tokens": 400.0,
        "rollout/prefilled_tokens": 200.0,
        "rollout/prefix_cache_hit_rate": 0.5,  # 200 / (200 + 200)
        "rollout/engine_idle_share": pytest.approx(0.4),  # (0.6 + 0.2) / 2
        "rollout/tokens_per_second": 40.0,  # 400 / 10
        "rollout/engine_restarts": 1.0,
        "rollout/request_timeouts": 2.0,
        "rollout/env_replacements": 3.0,
        "rollout/tasks_loaded_ahead": 6.0,
    }


def test_what_was_not_measured_is_absent():
    metrics = engine_metrics([counters()], seconds=0.0)
    assert "rollout/prefix_cache_hit_rate" not in metrics
    assert "rollout/engine_idle_share" not in metrics
    assert metrics["rollout/generated_tokens"] == 0.0
