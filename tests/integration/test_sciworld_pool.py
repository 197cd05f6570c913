"""The pool with real simulators: groups, crashes, and no Java process left behind."""

import asyncio
import os
import re
import signal
import sys

import psutil
import pytest

from agent_system.config import PoolConfig
from agent_system.environments.pool import EnvPool, EnvWorkerError
from agent_system.environments.registry import get_env_package
from agent_system.types import Task

from ..waiting import all_gone, running_python

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

ENV_NAME = "sciworld/SciWorldEnv"
TASK = Task("find-animal", {"task_name": "find-animal", "variation": 7})


@pytest.fixture
def pool():
    """Two simulators."""
    pool = EnvPool(get_env_package(ENV_NAME).bind({}), PoolConfig(slots_per_worker=2))
    yield pool
    pool.close()


def family(pid):
    """The process and its descendants."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def java_of(pid):
    [java] = [process for process in family(pid) if "java" in process.name()]
    return java


async def first_words(pool):
    async with pool.acquire() as env:
        observation, info = await env.reset(TASK)
        kitchen = await env.step("teleport to kitchen")
        look = await env.step("look around")
        texts = (observation.text, info["task_text"], kitchen.observation.text)
        return sorted(re.findall(r"\w+", " ".join([*texts, look.observation.text])))


def test_members_of_a_group_start_alike(pool):
    async def group():
        return await asyncio.gather(*(first_words(pool) for _ in range(4)))

    members = asyncio.run(group())
    assert "kitchen" in members[0]
    assert all(member == members[0] for member in members)


def test_a_crashed_simulator_costs_one_episode(pool):
    async def crash(kill):
        async with pool.acquire() as env:
            await env.reset(TASK)
            processes = family(env.pid)
            kill(env.pid)
            with pytest.raises(EnvWorkerError):
                await env.step("look around")
            return processes

    async def crash_both():
        java = await crash(lambda pid: java_of(pid).kill())
        worker = await crash(lambda pid: psutil.Process(pid).kill())
        again = await asyncio.gather(first_words(pool), first_words(pool))
        return java + worker, again

    processes, again = asyncio.run(crash_both())
    assert again[0] == again[1]
    assert all_gone(processes)
    assert pool.stats().replacements == 2


PARENT = """
    import asyncio, time
    from agent_system.config import PoolConfig
    from agent_system.environments.env_package.sciworld import PACKAGE
    from agent_system.environments.pool import EnvPool

    async def main():
        pool = EnvPool(PACKAGE.bind({}), PoolConfig(slots_per_worker=1))
        async with pool.acquire() as env:
            print(env.pid, flush=True)
            time.sleep(1000)

    asyncio.run(main())
"""


def test_a_killed_parent_leaves_no_simulator_behind():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with running_python(PARENT, env=environment) as parent:
        processes = family(int(parent.stdout.readline()))
        assert any("java" in process.name() for process in processes)
        parent.send_signal(signal.SIGKILL)
    assert all_gone(processes)


def test_simulators_are_quiet(capfd):
    pool = EnvPool(get_env_package(ENV_NAME).bind({}), PoolConfig(slots_per_worker=1))
    asyncio.run(first_words(pool))
    pool.close()
    assert capfd.readouterr() == ("", "")


def test_a_slot_stays_small(pool):
    asyncio.run(first_words(pool))
    for slot in pool._slots:
        asyncio.run(slot.ready())
        worker, *children = family(slot.pid)
        assert worker.memory_info().rss < 80 * 2**20
        assert sum(child.memory_info().rss for child in children) < 450 * 2**20
