"""Waiting for real Ray actors: one that works long is named, one that is stopped is killed."""

import os
import signal
import time

import psutil
import pytest
import ray
from ray.exceptions import RayActorError

from verl.utils.patience import Patience, Peer, actor_class

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

# of answers; long enough for a busy machine
PATIENCE = Patience(warning_s=0.5, limit_s=5.0)


class Sleeper:
    def process(self):
        return os.getpid()

    def sleep(self, seconds):
        time.sleep(seconds)
        return "rested"


@pytest.fixture(scope="module")
def cluster():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def sleeper(cluster):
    """(the actor as a peer, its process)."""
    actor = actor_class(Sleeper).remote()
    yield Peer("worker 7", actor), psutil.Process(ray.get(actor.process.remote()))
    ray.kill(actor)


def test_who_works_long_is_named_and_left_alone(sleeper, caplog):
    peer, _ = sleeper
    # longer than both limits together
    assert PATIENCE.result(peer.actor.sleep.remote(8), peer, "sleep") == "rested"
    told = [record.getMessage() for record in caplog.records]
    assert told and all(text.endswith("worker 7 at work") for text in told)
    assert len(told) <= 4  # at 2, 4, 8 s: twice as long each time


def test_who_is_stopped_is_named_and_killed(sleeper, caplog):
    peer, process = sleeper
    answer = peer.actor.sleep.remote(0)
    ray.get(answer)
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(RayActorError):
        PATIENCE.result(peer.actor.sleep.remote(0), peer, "sleep")
    told = [record.getMessage() for record in caplog.records]
    assert "no answer from worker 7" in told[0]
    assert told[-1] == "worker 7 has not answered for 5 s and is killed"
    process.wait(30)


def test_who_still_starts_is_not_killed(sleeper, caplog):
    peer, process = sleeper
    process.send_signal(signal.SIGSTOP)  # as if it loaded libraries
    answer = peer.actor.sleep.remote(0)
    starting = peer._replace(starts=True)
    resume = ray.remote(num_cpus=0)(_continue_later)
    resume.remote(process.pid, PATIENCE.limit_s + 3)
    assert PATIENCE.result(answer, starting, "start") == "rested"
    assert "for 600 s is killed" in caplog.text


def _continue_later(pid, seconds):
    time.sleep(seconds)
    os.kill(pid, signal.SIGCONT)


def test_the_death_of_one_ends_the_wait_for_another(sleeper):
    busy, _ = sleeper
    actor = actor_class(Sleeper).remote()
    process = psutil.Process(ray.get(actor.process.remote()))
    answers = {
        busy.actor.sleep.remote(200): busy,
        actor.sleep.remote(200): Peer("worker 8", actor),
    }
    process.kill()
    with pytest.raises(RayActorError):
        PATIENCE.results(answers, "sleep")


def test_results_are_in_the_order_of_the_questions(sleeper):
    peer, _ = sleeper
    answers = {peer.actor.sleep.remote(0.2): peer, peer.actor.process.remote(): peer}
    assert PATIENCE.results(answers, "work")[0] == "rested"
