"""A run on one machine listens at the loopback alone, whatever it starts."""

from __future__ import annotations

import ipaddress
import subprocess
from contextlib import suppress

import psutil
import pytest

from ..random_policy import write_random_llama
from ..runs import LAKE, command, environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.parametrize("engine", ["hf", pytest.param("vllm", marks=pytest.mark.vllm)])
def test_nobody_else_reaches_any_process_of_a_run(tmp_path, engine):
    run = subprocess.Popen(
        command(
            "main_ppo",
            *LAKE,
            f"trainer.default_local_dir={tmp_path / 'run'}",
            f"actor_rollout_ref.model.path={write_random_llama(tmp_path / 'policy')}",
            f"actor_rollout_ref.rollout.name={engine}",
            "trainer.n_gpus_per_node=2",
        ),
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    listeners: dict[str, set[str]] = {}
    while run.poll() is None:
        for process in [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]:
            for name, address in listening(process):
                listeners.setdefault(name, set()).add(address)
        with suppress(subprocess.TimeoutExpired):
            run.wait(timeout=0.3)
    _, errors = run.communicate()
    assert run.returncode == 0, errors[-4000:]
    assert {"gcs_server", "raylet"} <= listeners.keys(), listeners
    open_to_others = {
        (name, address)
        for name, addresses in listeners.items()
        for address in addresses
        if not ipaddress.ip_address(address.removeprefix("::ffff:")).is_loopback
    }
    assert not open_to_others


def listening(process: psutil.Process) -> list[tuple[str, str]]:
    """The process's name and the addresses at which it listens; nothing of one that has ended."""
    try:
        connections = process.net_connections("tcp")
        name = process.name()
    except psutil.Error:
        return []
    return [(name, c.laddr.ip) for c in connections if c.status == psutil.CONN_LISTEN]
