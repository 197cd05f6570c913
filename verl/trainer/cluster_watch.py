"""A thread that sees Ray's own processes die before Ray ends this process without a word."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil
from ray._private import worker as ray_worker

from verl.trainer.stop_requests import ClusterLostError

PING_S = 5.0  # between two looks at a cluster that others started, and for its answer
PINGS = 3  # that are missed in a row: Ray itself waits for 60 s before it ends the driver

AGENTS_S = 3.0  # what they have to end by themselves

# Of a cluster that is started here: Ray's name of a process, ours.
PROCESSES = {"raylet": "Ray's raylet", "gcs_server": "Ray's control process (gcs_server)"}


@contextmanager
def watched_cluster(on_loss: Callable[[ClusterLostError], object]) -> Iterator[None]:
    """`on_loss` is called from a thread, once, when the cluster that this process is connected to
    cannot go on."""
    over, wake = os.pipe()
    watch = _watch_processes if _own_processes() else _watch_answers
    thread = threading.Thread(target=watch, args=(over, on_loss), name="cluster", daemon=True)
    thread.start()
    try:
        yield
    finally:
        os.close(wake)
        thread.join()
        os.close(over)


def _watch_processes(over: int, on_loss: Callable[[ClusterLostError], object]) -> None:
    """The kernel tells at once; Ray takes up to a minute, or ends this process first."""
    names = {os.pidfd_open(pid): name for pid, name in _own_processes().items()}
    try:
        ready, _, _ = select.select([over, *names], [], [])
        if over not in ready:
            on_loss(ClusterLostError(f"{names[ready[0]]} died"))
    finally:
        for descriptor in names:
            os.close(descriptor)


def _own_processes() -> dict[int, str]:
    """Process id -> name, of a cluster that this process has started."""
    node: Any = ray_worker._global_node
    if node is None:
        return {}
    return {
        process.process.pid: name
        for key, name in PROCESSES.items()
        for process in node.all_processes.get(key, [])
    }


def own_agents() -> list[psutil.Process]:
    """What the processes of a cluster that was started here have started themselves."""
    agents = []
    for pid in _own_processes():
        with suppress(psutil.NoSuchProcess):
            agents += psutil.Process(pid).children(recursive=True)
    return agents


def end(processes: list[psutil.Process]) -> None:
    """Without their cluster, Ray's agents would stay for a minute."""
    _, left = psutil.wait_procs(processes, timeout=AGENTS_S)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _watch_answers(over: int, on_loss: Callable[[ClusterLostError], object]) -> None:
    missed, answered = 0, time.monotonic()
    while not select.select([over], [], [], PING_S)[0]:
        if _control_answers():
            missed, answered = 0, time.monotonic()
        else:
            missed += 1
        if missed == PINGS:
            silent = time.monotonic() - answered
            on_loss(ClusterLostError(f"the Ray cluster has not answered for {silent:.0f} s"))
            return


def _control_answers() -> bool:
    driver: Any = ray_worker.global_worker
    try:
        driver.gcs_client.internal_kv_get(b"ping", None, timeout=PING_S)
    except Exception:  # whatever Ray calls it
        return False
    return True
