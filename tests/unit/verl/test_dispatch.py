"""How calls are spread and collected, without Ray: workers are objects of this process."""

import pickle
import socket

import pytest
import torch
from tensordict import TensorDict

from verl import DataProto
from verl.single_controller.base import ClassWithInitArgs, ResourcePool, Worker, WorkerGroup
from verl.single_controller.base.decorator import MAGIC_ATTR, Dispatch, Execute, register
from verl.single_controller.base.dispatch import MODES
from verl.single_controller.base.rendezvous import find_free_port
from verl.utils.ray_utils import ray_noset_visible_devices


def batch_of(rows: int) -> DataProto:
    return DataProto.from_dict({"a": torch.arange(rows)})


def values(batch: DataProto | TensorDict) -> list[int]:
    return (batch if isinstance(batch, TensorDict) else batch.batch)["a"].tolist()


class TestModes:
    def test_every_mode_is_in_the_table(self):
        assert set(MODES) == set(Dispatch)

    def test_one_to_all(self):
        mode = MODES[Dispatch.ONE_TO_ALL]
        assert mode.spread("x", 2) == ["x", "x"] and mode.collect([3, 4]) == [3, 4]

    def test_all_to_all_leaves_arguments_as_they_are(self):
        mode = MODES[Dispatch.ALL_TO_ALL]
        assert mode.spread([1, 2], 2) == [1, 2] and mode.collect([3, 4]) == [3, 4]

    @pytest.mark.parametrize("as_tensordict", [False, True])
    def test_batches_are_chunked_and_concatenated(self, as_tensordict):
        mode = MODES[Dispatch.DP_COMPUTE_PROTO]
        parts = mode.spread(batch_of(4).batch if as_tensordict else batch_of(4), 2)
        assert [values(part) for part in parts] == [[0, 1], [2, 3]]
        assert values(mode.collect(parts)) == [0, 1, 2, 3]

    def test_metrics_come_back_one_a_worker(self):
        mode = MODES[Dispatch.DP_COMPUTE_METRIC]
        assert [values(part) for part in mode.spread(batch_of(2), 2)] == [[0], [1]]
        assert mode.collect(["m0", "m1"]) == ["m0", "m1"]

    def test_what_is_no_batch_reaches_every_worker_as_it_is(self):
        for mode in (Dispatch.DP_COMPUTE_PROTO, Dispatch.DP_COMPUTE_METRIC):
            assert MODES[mode].spread([1, 2, 3], 2) == [[1, 2, 3], [1, 2, 3]]

    def test_uneven_rows_are_refused(self):
        for batch in (batch_of(3), batch_of(3).batch):
            with pytest.raises(AssertionError, match="3 rows do not split into 2"):
                MODES[Dispatch.DP_COMPUTE_PROTO].spread(batch, 2)

    def test_a_mode_survives_pickling(self):
        assert pickle.loads(pickle.dumps(Dispatch.ONE_TO_ALL)) is Dispatch.ONE_TO_ALL


class TestRegister:
    def test_registration_is_carried_by_the_method_itself(self):
        def method():
            """Doc."""

        assert register(Dispatch.ONE_TO_ALL, Execute.RANK_ZERO)(method) is method
        assert getattr(method, MAGIC_ATTR) == (Dispatch.ONE_TO_ALL, Execute.RANK_ZERO)

    @pytest.mark.parametrize(
        ("modes", "message"),
        [
            ({"dispatch_mode": "ONE_TO_ALL"}, "is not a dispatch mode"),
            ({"execute_mode": Dispatch.ONE_TO_ALL}, "is not an execute mode"),
        ],
    )
    def test_bad_modes(self, modes, message):
        with pytest.raises(AssertionError, match=message):
            register(**modes)


class Adder:
    def __init__(self, rank: int) -> None:
        self.rank = rank

    @register(Dispatch.DP_COMPUTE_PROTO)
    def add(self, data, amount):
        data.batch["a"] = data.batch["a"] + self.rank + len(amount)
        return data

    def unregistered(self):
        return self.rank


class LocalGroup(WorkerGroup):
    """Calls its workers one after the other."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._workers = [Adder(rank) for rank in range(size)]
        self._bind_worker_methods(Adder)

    def execute(self, registration, method, args, kwargs):
        return [
            getattr(worker, method)(
                *(arg[i] for arg in args), **{key: value[i] for key, value in kwargs.items()}
            )
            for i, worker in enumerate(self._workers)
        ]


def test_a_group_offers_the_registered_methods_and_calls_them_on_all():
    group = LocalGroup(2)
    # rank 0 gets rows 0, 1 and rank 1 rows 2, 3; each adds its rank and the 2 rows of `amount`
    assert values(group.add(batch_of(4), amount=batch_of(4))) == [2, 3, 5, 6]
    assert not hasattr(group, "unregistered")


class TestWorker:
    def test_place_from_the_environment(self, monkeypatch):
        monkeypatch.setenv("RANK", "3")
        monkeypatch.setenv("WORLD_SIZE", "4")
        worker = Worker()
        assert (worker.rank, worker.world_size) == (3, 4)

    def test_alone_without_a_group(self, monkeypatch):
        monkeypatch.delenv("RANK", raising=False)
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        assert (Worker().rank, Worker().world_size) == (0, 1)


def test_visible_devices_switch():
    assert not ray_noset_visible_devices({})
    assert ray_noset_visible_devices({"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"})


def test_resource_pool():
    pool = ResourcePool([2, 1])
    assert pool.world_size == 3 and pool.store == [2, 1]


def test_class_with_init_args():
    assert ClassWithInitArgs(dict, [("a", 1)], b=2)() == {"a": 1, "b": 2}


def test_free_port_can_be_bound():
    with socket.socket() as listener:
        listener.bind(("", find_free_port()))
        listener.listen()
        assert 20000 <= listener.getsockname()[1] < 32000
