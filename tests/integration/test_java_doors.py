"""Simulators in Java obey the process that started them, and no other caller on the machine."""

from __future__ import annotations

import asyncio

import psutil
import pytest
from py4j.java_gateway import GatewayParameters, JavaGateway
from py4j.protocol import Py4JError

from agent_system.config import PoolConfig
from agent_system.environments.pool import EnvPool
from agent_system.environments.registry import get_env_package
from agent_system.types import Task

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

SCIENCE = Task("find-animal", {"task_name": "find-animal", "variation": 7})
COIN = Task("coin", {"game": "coin", "fold": "train", "seed": 3})


def java_of(children: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in children if "java" in process.name()]


@pytest.mark.parametrize(
    ("name", "options", "task"),
    [
        ("sciworld/SciWorldEnv", {}, SCIENCE),
        ("sciworld/SciWorldEnv", {"simulators_per_jvm": 2}, SCIENCE),
        ("textworld_express/TextWorldExpressEnv", {}, COIN),
    ],
    ids=["own", "shared", "textworld express"],
)
def test_a_stranger_is_refused_at_the_port(name, options, task):
    async def seen():
        async with pool.acquire() as env:
            return (await env.reset(task))[0].text

    before = java_of(psutil.process_iter())
    pool = EnvPool(get_env_package(name).bind(options), PoolConfig(slots_per_worker=1))
    try:
        assert asyncio.run(seen())
        started = [java for java in java_of(psutil.process_iter()) if java not in before]
        ours = [java for java in started if is_ours(java)]
        ports = [port for java in ours for port in loopback_ports(java)]
        assert ports
        for port in ports:
            stranger = JavaGateway(gateway_parameters=GatewayParameters(port=port))
            with pytest.raises(Py4JError):
                stranger.jvm.java.lang.System.getProperty("user.name")
            stranger.close()
        assert asyncio.run(seen())  # and goes on for its own
    finally:
        pool.close()


def is_ours(java: psutil.Process) -> bool:
    """Whether it descends from this process."""
    return any(parent.pid == psutil.Process().pid for parent in java.parents())


def loopback_ports(java: psutil.Process) -> list[int]:
    """Where it listens. Nothing of it listens elsewhere."""
    listening = [c for c in java.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert {c.laddr.ip for c in listening} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    return [c.laddr.port for c in listening]
