"""Rollout workers that fail, on a real Ray cluster: by hand, and with ScienceWorld."""

import asyncio
import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import ray

from verl.config.plan import make_plan
from verl.config.root import PPOConfig
from verl.config.trainer import RunConfig
from verl.utils.errors import UserError
from verl.utils.loop_thread import LoopThread
from verl.workers.rollout.rollout_workers import RolloutPlacement, RolloutWorkers
from verl.workers.rollout.supervised import WeightsLostError

from ..waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@dataclass(frozen=True)
class Request:
    uid: str
    traj_uid: str


def make_requests(groups, members=2):
    return [Request(f"g{g}", f"g{g}/{m}") for g in range(groups) for m in range(members)]


class ScriptedWorker:
    """Delivers `<traj_uid> by <weights>`; what it does in its n-th life is read from a file.

    The plan's line n holds the number of trajectories until it dies (`die`), fails (`fail`), loses
    its weights (`lose`) or waits for ever (`hang`), for instance `1 die`.
    """

    def __init__(self, config, plan, rank):
        self._folder = Path(config.trainer.default_local_dir) / str(rank)
        self._weights = "none"
        self._loop = None
        self._delivered = 0

    def start(self, weights=None):
        self._folder.mkdir(parents=True, exist_ok=True)
        life = len(list(self._folder.glob("life_*")))
        (self._folder / f"life_{life}").touch()
        plan = (self._folder / "plan").read_text().splitlines()
        limit, self._then = plan[life].split() if life < len(plan) else ("1000", "die")
        self._limit = int(limit)
        if self._then == "refuse":
            raise UserError("the model is gone")
        if weights is not None:
            self.update_weights(weights)
        self._loop = LoopThread("scripted")

    def update_weights(self, weights):
        if self._then == "misfit":
            raise RuntimeError("the weights did not arrive")
        self._weights = weights

    def collect(self, episodes, sampling, seed):
        for episode in episodes:
            if self._delivered == self._limit:
                self._fail()
            self._delivered += 1
            self._last = episode
            yield SimpleNamespace(episode=episode, text=f"{episode.traj_uid} by {self._weights}")

    def _fail(self):
        if self._then == "die":
            if self._delivered:
                wait_until(arrival(self._folder.parent, self._last).exists)
            os.kill(os.getpid(), signal.SIGKILL)
        if self._then == "fail":
            raise UserError("the engine gave up")
        if self._then == "lose":
            raise WeightsLostError("the engine died")
        self._loop.run(hang(self._folder))

    def cancel(self):
        if self._loop is not None:
            self._loop.cancel()

    def sleep(self):
        self._weights += " asleep"

    def stats(self):
        names = ("generated_tokens", "prefilled_tokens", "cache_hit_tokens", "busy_seconds")
        engine = {f"engine/{name}": 0.0 for name in (*names, "restarts", "timeouts")}
        env = {"env/replacements": 0.0, "env/loaded_ahead": 0.0}
        return engine | env | {"engine/generated_tokens": self._delivered}

    def close(self):
        (self._folder / "closed").touch()


def arrival(run_dir, episode):
    """There once the driver has the episode's trajectory."""
    return run_dir / f"arrived_{episode.traj_uid.replace('/', '_')}"


async def hang(folder):
    (folder / "hangs").touch()
    try:
        await asyncio.sleep(1000)
    finally:
        (folder / "cancelled").touch()


class NotingWorkers(RolloutWorkers):
    def collect(self, episodes, sampling, seed, on_trajectory=lambda trajectory: None):
        def note(trajectory):
            arrival(self.run_dir, trajectory.episode).touch()
            on_trajectory(trajectory)

        return super().collect(episodes, sampling, seed, note)


@pytest.fixture(scope="module")
def cluster():
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def scripted(cluster, tmp_path):
    """A group of scripted workers, by their plans."""
    groups = []

    def make(*plans):
        for rank, plan in enumerate(plans):
            (tmp_path / str(rank)).mkdir()
            (tmp_path / str(rank) / "plan").write_text("\n".join(plan))
        config = PPOConfig(epo=None, env=None, trainer=RunConfig(default_local_dir=str(tmp_path)))
        places = [RolloutPlacement("SPREAD", num_cpus=1, num_gpus=0)] * len(plans)
        groups.append(NotingWorkers(ScriptedWorker, config, make_plan(config), places, {}))
        groups[-1].run_dir = tmp_path
        groups[-1].wait_until_started()
        return groups[-1]

    yield make
    for group in groups:
        group.close()


def texts(trajectories):
    return [trajectory.text for trajectory in trajectories]


def test_a_dead_worker_is_replaced_and_nothing_is_delivered_twice(scripted, tmp_path):
    group = scripted(["2 die"], [])
    group.update_weights(ray.put("v1"))
    requests = make_requests(groups=4)
    arrived = []
    trajectories = group.collect(requests, None, 0, arrived.append)
    assert texts(trajectories) == [f"{request.traj_uid} by v1" for request in requests]
    assert sorted(texts(arrived)) == sorted(texts(trajectories))
    metrics = group.metrics()
    assert metrics["rollout/worker_restarts"] == 1
    assert metrics["rollout/generated_tokens"] == 2 + 4  # the first two died with their worker
    group.collect(make_requests(groups=1), None, 0)
    metrics = group.metrics()
    assert (metrics["rollout/worker_restarts"], metrics["rollout/generated_tokens"]) == (0, 2)


def test_counters_of_a_new_worker_begin_at_zero(scripted):
    group = scripted(["4 die"])
    group.collect(make_requests(groups=2), None, 0)
    assert group.metrics()["rollout/generated_tokens"] == 4
    group.collect(make_requests(groups=1), None, 0)
    assert group.metrics()["rollout/generated_tokens"] == 2  # not 2 - 4


def test_a_worker_may_die_before_it_has_weights(scripted):
    group = scripted(["1 die"])
    trajectories = group.collect(make_requests(groups=1), None, 0)
    assert texts(trajectories) == ["g0/0 by none", "g0/1 by none"]


def test_a_worker_may_die_again_once_it_has_delivered(scripted):
    group = scripted(["1 die", "1 die", "1 die"])
    assert len(group.collect(make_requests(groups=2), None, 0)) == 4
    assert group.metrics()["rollout/worker_restarts"] == 3


def test_a_second_death_in_a_row_stops_the_run(scripted, tmp_path):
    group = scripted(["1 die", "0 die"], ["1 hang"])
    with pytest.raises(UserError) as caught:
        group.collect(make_requests(groups=4), None, 0)
    message = str(caught.value)
    assert "rollout worker 0 was restarted and died again before it finished" in message
    assert str(tmp_path / "rollout_000.log") in message
    assert "resumes from the last checkpoint" in message
    wait_until((tmp_path / "1" / "cancelled").exists)  # the other worker does not go on
    group.close()
    assert (tmp_path / "1" / "closed").exists()


def test_a_death_between_rollouts_is_found_when_weights_come(scripted):
    group = scripted([])
    kill_worker(group)
    group.update_weights(ray.put("v2"))
    assert texts(group.collect(make_requests(groups=1), None, 0))[0] == "g0/0 by v2"
    kill_worker(group)
    group.sleep()
    kill_worker(group)
    with pytest.raises(UserError, match="died again"):
        group.update_weights(ray.put("v3"))


def test_an_engine_that_lost_its_weights_is_replaced_with_those_of_the_trainer(scripted):
    group = scripted(["1 lose"])
    group.ask_for_weights(lambda: ray.put("fetched"))
    delivered = texts(group.collect(make_requests(groups=1), None, 0))
    assert delivered == ["g0/0 by none", "g0/1 by fetched"]
    assert group.metrics()["rollout/worker_restarts"] == 1


@pytest.mark.parametrize(
    ("plan", "error", "message"),
    [
        ("0 refuse", UserError, "the model is gone"),
        ("9 misfit", RuntimeError, "the weights did not arrive"),
    ],
)
def test_a_successor_that_does_not_start_delivers_nothing(scripted, plan, error, message):
    group = scripted(["1 die", plan])
    group.update_weights(ray.put("v1"))
    arrived = []
    with pytest.raises(error, match=message):
        group.collect(make_requests(groups=2), None, 0, arrived.append)
    assert texts(arrived) == ["g0/0 by v1"]


def test_an_error_of_one_worker_ends_the_rollouts_of_all(scripted, tmp_path):
    hangs = tmp_path / "1" / "hangs"
    group = scripted(["1 fail"], ["1 hang"])
    with pytest.raises(UserError, match="the engine gave up"):
        group.collect(make_requests(groups=2), None, 0, lambda _: wait_until(hangs.exists))
    wait_until((tmp_path / "1" / "cancelled").exists)
    group.close()
    assert (tmp_path / "0" / "closed").exists() and (tmp_path / "1" / "closed").exists()


def test_an_error_of_the_caller_ends_the_rollouts(scripted, tmp_path):
    group = scripted(["1 hang"])

    def interrupt(trajectory):
        wait_until((tmp_path / "0" / "hangs").exists)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        group.collect(make_requests(groups=1), None, 0, interrupt)
    wait_until((tmp_path / "0" / "cancelled").exists)


def test_closing_ends_a_rollout_of_another_thread(scripted, tmp_path):
    """As when Ctrl-C meets a rollout that runs ahead. The workers are not started anew, and a call
    that waits for the end of the rollout does not hold the cancellation up."""
    group = scripted(["1 hang"])
    errors = []

    def collect():
        try:
            group.collect(make_requests(groups=1), None, 0)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=collect)
    thread.start()
    wait_until((tmp_path / "0" / "hangs").exists)
    group.workers[0].stats.remote()
    group.close()
    assert (tmp_path / "0" / "cancelled").exists()
    assert (tmp_path / "0" / "closed").exists()  # by itself: it was not killed after CLOSE_S
    thread.join(60)
    assert not thread.is_alive()
    assert len(errors) == 1
    assert len(list((tmp_path / "0").glob("life_*"))) == 1


def kill_worker(group, rank=0):
    pid = ray.get(group.workers[rank].__ray_call__.remote(lambda self: os.getpid()))
    process = psutil.Process(pid)
    process.kill()
    process.wait(10)


class WithCoroutine(ScriptedWorker):
    async def play(self):
        pass


def test_a_worker_that_ray_would_make_an_asyncio_actor_is_refused(tmp_path):
    config = PPOConfig(epo=None, env=None, trainer=RunConfig(default_local_dir=str(tmp_path)))
    with pytest.raises(TypeError, match=r"WithCoroutine has coroutine methods \(play\)"):
        RolloutWorkers(WithCoroutine, config, make_plan(config), [], {})
