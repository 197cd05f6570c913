"""A cluster that dies is seen: at once where its processes are ours, else by its silence."""

import queue
import subprocess
import sys

import pytest

from verl.trainer import cluster_watch
from verl.trainer.cluster_watch import watched_cluster


@pytest.fixture
def raylet(monkeypatch):
    """A process in the raylet's place."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    monkeypatch.setattr(cluster_watch, "_own_processes", lambda: {process.pid: "Ray's raylet"})
    yield process
    process.kill()
    process.communicate()


@pytest.fixture
def others_cluster(monkeypatch):
    """A cluster that others started; answers come from the returned list, then always."""
    answers = []
    monkeypatch.setattr(cluster_watch, "_own_processes", dict)
    monkeypatch.setattr(
        cluster_watch, "_control_answers", lambda: answers.pop(0) if answers else True
    )
    monkeypatch.setattr(cluster_watch, "PING_S", 0.01)
    return answers


def test_the_death_of_a_process_is_told_by_its_name(raylet):
    losses = queue.Queue()
    with watched_cluster(losses.put):
        raylet.kill()
        assert str(losses.get(timeout=10)) == "Ray's raylet died"


def test_a_block_that_ends_is_told_of_nothing(raylet):
    losses = queue.Queue()
    with watched_cluster(losses.put):
        pass
    raylet.kill()
    raylet.wait()
    assert losses.empty()


def test_silence_is_told_once_it_lasts(others_cluster):
    others_cluster += [False, False, True, False, False, False]
    losses = queue.Queue()
    with watched_cluster(losses.put):
        assert "has not answered" in str(losses.get(timeout=10))
    assert others_cluster == [] and losses.empty()
