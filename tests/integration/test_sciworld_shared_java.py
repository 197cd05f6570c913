"""The low-memory mode: environment processes that share a Java process, and what kills it."""

import asyncio
import os
import random
import signal
import subprocess
import sys
from contextlib import suppress

import psutil
import pytest

from agent_system.config import PoolConfig
from agent_system.environments.env_package.sciworld import PACKAGE
from agent_system.environments.env_package.sciworld.shared_java import IN_A_CALL
from agent_system.environments.env_package.sciworld.simulator import _writable_folder
from agent_system.environments.pool import EnvPool, EnvWorkerError
from agent_system.types import Task

from ..waiting import all_gone, running_python, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

FIND = Task("find-living-thing", {"task_name": "find-living-thing", "variation": 0})
POWER = Task("power-component", {"task_name": "power-component", "variation": 0})
HEAP_MB = 333  # found again in the command line of Java


def shared_pool(slots, simulators_per_jvm, heap_mb=HEAP_MB):
    options = {"simulators_per_jvm": simulators_per_jvm, "jvm_heap_mb": heap_mb, "gold_path": True}
    return EnvPool(PACKAGE.bind(options), PoolConfig(slots_per_worker=slots))


@pytest.fixture(scope="module")
def pool():
    """Two environment processes and one Java process, mended after whatever a test does to them."""
    pool = shared_pool(2, 2)
    yield pool
    pool.close()


def java_processes(heap_mb=HEAP_MB):
    """The shared Java processes of these tests that are alive."""
    began = psutil.Process().create_time()
    found = []
    for process in psutil.process_iter(["cmdline", "create_time"]):
        is_ours = process.info["create_time"] >= began
        if is_ours and f"-Xmx{heap_mb}m" in (process.info["cmdline"] or ()):
            found.append(process)
    return found


@pytest.fixture
def suspend(pool):
    """Suspends a process. One that a failed test leaves so would stay for ever, and spoil the next
    test: it is killed, and the pool finds out."""
    suspended = []

    def suspend(process):
        suspended.append(process)
        process.suspend()

    yield suspend
    for process in suspended:
        with suppress(psutil.NoSuchProcess):
            process.kill()
            asyncio.run(play_together(pool, [FIND, FIND]))


def is_in_a_call(java):
    """Whether the one whose turn it is has marked that it calls this shared Java process."""
    for turn in _writable_folder().glob(f"{os.getpid()}-*/*/turn"):
        mark, pid, *_ = turn.read_bytes().split()
        if int(pid) == java.pid:
            return mark == IN_A_CALL
    return False


async def win(pool, task):
    """Play the gold path; True when it won."""
    async with pool.acquire() as env:
        _, info = await env.reset(task)
        for command in info["gold_path"]:
            result = await env.step(command)
            if result.terminated:
                break
        return result.info["success"]


async def play_together(pool, tasks):
    return await asyncio.gather(*(win(pool, task) for task in tasks), return_exceptions=True)


def test_games_in_one_java_process_do_not_disturb_each_other(pool):
    # the first has no electrical actions, the second needs them: both simplified as "easy"
    assert asyncio.run(play_together(pool, [FIND, POWER, POWER, FIND])) == [True] * 4
    assert len(java_processes()) == 1


def test_a_process_that_dies_between_calls_costs_nobody_else(pool):
    async def kill_a_neighbour():
        async with pool.acquire() as first, pool.acquire() as second:
            await first.reset(FIND)
            await second.reset(FIND)
            psutil.Process(first.pid).kill()
            with pytest.raises(EnvWorkerError):
                await first.step("look around")
            return [await second.step("look around") for _ in range(3)]

    asyncio.run(kill_a_neighbour())
    java = java_processes()
    assert asyncio.run(play_together(pool, [FIND, FIND])) == [True, True]
    assert java_processes() == java  # it is still the one from before


def test_java_is_replaced_when_a_process_died_within_a_call(pool, suspend):
    async def die_within_a_call():
        async with pool.acquire() as first, pool.acquire() as second:
            await first.reset(FIND)
            await second.reset(FIND)
            [java] = java_processes()
            suspend(java)  # the call does not come back
            waiting = asyncio.create_task(first.step("look around"))
            await until(lambda: is_in_a_call(java))
            psutil.Process(first.pid).kill()
            with pytest.raises(EnvWorkerError):
                await waiting
            with pytest.raises(EnvWorkerError, match="died within a call to the shared Java"):
                await second.step("look around")
            return java

    java = asyncio.run(die_within_a_call())
    assert all_gone([java])
    assert asyncio.run(play_together(pool, [FIND, FIND])) == [True, True]


def test_the_death_of_java_fails_its_games_and_no_later_one(pool):
    async def lose_java():
        async with pool.acquire() as first, pool.acquire() as second:
            await first.reset(FIND)
            await second.reset(FIND)
            [java] = java_processes()
            java.kill()
            answers = await asyncio.gather(
                first.step("look around"), second.step("look around"), return_exceptions=True
            )
            assert all(isinstance(answer, EnvWorkerError) for answer in answers)

    asyncio.run(lose_java())
    assert asyncio.run(play_together(pool, [FIND, FIND])) == [True, True]


def test_java_that_is_about_to_end_is_not_joined(suspend):
    heap_mb = HEAP_MB + 4
    first = shared_pool(2, 2, heap_mb)
    try:
        asyncio.run(play_together(first, [FIND, FIND]))
        [java] = java_processes(heap_mb)
        suspend(java)  # the end of its input has come, and it has not noticed yet
    finally:
        first.close()
    second = shared_pool(2, 2, heap_mb)
    try:
        assert asyncio.run(play_together(second, [FIND, FIND])) == [True, True]
        assert second.stats().replacements == 0
        assert all_gone([java])
    finally:
        second.close()


def test_random_kills_lose_episodes_but_never_spoil_one(pool):
    rng = random.Random(0)

    async def play_under_fire():
        episodes = [asyncio.create_task(win(pool, task)) for task in [FIND, POWER] * 8]
        for number, episode in enumerate(asyncio.as_completed(episodes)):
            await asyncio.wait([asyncio.ensure_future(episode)])
            victim = rng.choice(pool._slots).pid
            if number % 4 == 0 and victim is not None:
                psutil.Process(victim).kill()
        return await asyncio.gather(*episodes, return_exceptions=True)

    results = asyncio.run(play_under_fire())
    assert {type(result) for result in results} == {bool, EnvWorkerError}
    assert all(result for result in results if isinstance(result, bool))


PARENT = f"""
    import asyncio, signal
    from agent_system.config import PoolConfig
    from agent_system.environments.env_package.sciworld import PACKAGE
    from agent_system.environments.pool import EnvPool

    async def main():
        options = {{"simulators_per_jvm": 2, "jvm_heap_mb": {HEAP_MB + 2}}}
        pool = EnvPool(PACKAGE.bind(options), PoolConfig(slots_per_worker=2))
        async with pool.acquire(), pool.acquire():
            print("up", flush=True)
            await asyncio.sleep(1000)

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    asyncio.run(main())
"""


def test_processes_beyond_the_seats_get_another_java_process():
    pool = shared_pool(3, 2, heap_mb=HEAP_MB + 1)
    try:
        assert asyncio.run(play_together(pool, [FIND, FIND, FIND])) == [True] * 3
        assert len(java_processes(HEAP_MB + 1)) == 2
    finally:
        pool.close()
    assert all_gone(java_processes(HEAP_MB + 1))


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT])
def test_no_java_process_outlives_its_pool(signal_number):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with running_python(PARENT, env=environment, stderr=subprocess.DEVNULL) as parent:
        assert parent.stdout.readline() == "up\n"
        java = java_processes(HEAP_MB + 2)
        assert len(java) == 1
        parent.send_signal(signal_number)
    assert all_gone(java)
