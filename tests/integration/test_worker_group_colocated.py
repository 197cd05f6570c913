"""Several workers in one process, and what happens when a worker fails."""

import os
import signal
import threading
import time

import pytest
import ray
import torch
from ray.exceptions import RayActorError, RayTaskError

from verl import DataProto
from verl.single_controller.base import Worker
from verl.single_controller.base.decorator import Dispatch, register
from verl.single_controller.ray import resource_pool
from verl.single_controller.ray.base import (
    RayClassWithInitArgs,
    RayResourcePool,
    RayWorkerGroup,
    create_colocated_worker_cls,
)
from verl.single_controller.ray.resource_pool import _ip_sort_key
from verl.utils.errors import UserError, WorkerDiedError

pytestmark = pytest.mark.slow


class Actor(Worker):
    @register(Dispatch.DP_COMPUTE_PROTO)
    def add(self, data):
        data.batch["a"] += self.rank
        return data

    @register(Dispatch.ONE_TO_ALL)
    def process(self):
        return os.getpid()

    def unregistered(self, x):
        return ("actor", x)


@ray.remote
class Critic(Worker):
    def __init__(self, config) -> None:
        super().__init__()
        self.config = config

    @register(Dispatch.DP_COMPUTE_PROTO)
    def subtract(self, data):
        data.batch["a"] -= self.config["b"]
        return data

    @register(Dispatch.ONE_TO_ALL)
    def process(self):
        return os.getpid()

    @register(Dispatch.ALL_TO_ALL)
    def minus_one(self, x):
        return x - 1


CLASSES = {
    "actor": RayClassWithInitArgs(Actor),
    "critic": RayClassWithInitArgs(Critic, config={"b": 10}),
}


class Failing(Worker):
    @register(Dispatch.ONE_TO_ALL)
    def fail_on_rank_one(self, how):
        if self.rank == 0:
            time.sleep(60)  # as if it waited for rank 1 in a collective
        if how == "raise":
            raise ValueError("the cause")
        os._exit(1)

    @register(Dispatch.ONE_TO_ALL)
    def process(self):
        return os.getpid()

    @register(Dispatch.ONE_TO_ALL)
    def lose_rank_one(self, processes):
        if self.rank == 0:
            os.kill(processes[1], signal.SIGKILL)
            raise RuntimeError("connection reset by peer")  # as a collective says
        threading.Event().wait()


class Broken(Worker):
    def __init__(self) -> None:
        raise ValueError("cannot be built")

    @register(Dispatch.ONE_TO_ALL)
    def call(self):
        return None


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(num_cpus=20, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def groups() -> dict[str, RayWorkerGroup]:
    pool = RayResourcePool([2], use_gpu=False)
    return RayWorkerGroup(pool, create_colocated_worker_cls(CLASSES)).spawn(CLASSES)


class TestColocated:
    def test_each_group_has_its_methods(self, groups):
        data = DataProto.from_dict({"a": torch.zeros(4)})
        assert groups["actor"].add(data).batch["a"].tolist() == [0, 0, 1, 1]
        assert groups["critic"].subtract(data).batch["a"].tolist() == [-10] * 4
        assert not hasattr(groups["actor"], "subtract")

    def test_methods_of_one_name_go_to_their_own_worker_in_one_process(self, groups):
        processes = groups["actor"].process()
        assert processes == groups["critic"].process() and len(set(processes)) == 2

    def test_unregistered_methods_are_reached(self, groups):
        assert groups["actor"].execute_all_sync("unregistered", 1) == [("actor", 1)] * 2


class TestFailures:
    @pytest.fixture
    def failing(self) -> RayWorkerGroup:
        return RayWorkerGroup(RayResourcePool([2], use_gpu=False), RayClassWithInitArgs(Failing))

    def test_an_exception_arrives_while_others_still_run(self, failing):
        start = time.monotonic()
        with pytest.raises(RayTaskError, match="the cause") as error:
            failing.fail_on_rank_one("raise")
        assert isinstance(error.value.cause, ValueError)
        assert time.monotonic() - start < 30

    def test_a_death_is_reported(self, failing):
        with pytest.raises(
            WorkerDiedError, match=r"rank 1 died during fail_on_rank_one \(its process"
        ):
            failing.fail_on_rank_one("die")

    def test_a_death_is_reported_where_another_rank_fails_of_it_first(self, failing):
        with pytest.raises(WorkerDiedError, match="rank 1 died during lose_rank_one"):
            failing.lose_rank_one(failing.process())

    def test_a_constructor_error_names_its_cause(self):
        group = RayWorkerGroup(RayResourcePool([1], use_gpu=False), RayClassWithInitArgs(Broken))
        with pytest.raises(RayActorError, match="cannot be built"):
            group.call()


def test_a_pool_that_does_not_fit_says_what_is_missing(monkeypatch, caplog):
    monkeypatch.setattr(resource_pool, "_PLACEMENT_NOTICE_S", 0.1)
    monkeypatch.setattr(resource_pool, "_PLACEMENT_TIMEOUT_S", 0.5)
    with pytest.raises(UserError, match=r"cannot place \[50\] workers .* ask for fewer workers"):
        RayWorkerGroup(RayResourcePool([50], use_gpu=False), RayClassWithInitArgs(Actor))
    assert "waiting for room for [50] workers" in caplog.text


def test_shares_add_up_to_a_place():
    pool = RayResourcePool([1], max_colocate_count=3)
    assert pool.share("cuda") == {"CPU": 1, "GPU": 0.3333}
    assert pool.share("cpu") == {"CPU": 0.3333}
    assert RayResourcePool([1], use_gpu=False, max_colocate_count=1).share(None) == {"CPU": 1}


def test_nodes_are_ordered_by_number():
    addresses = ["nodeb", "10.0.0.10", "10.0.0.9", "nodea", "9.9.9.9"]
    ordered = ["9.9.9.9", "10.0.0.9", "10.0.0.10", "nodea", "nodeb"]
    assert sorted(addresses, key=_ip_sort_key) == ordered
