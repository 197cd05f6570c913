"""How calls are spread and collected, without Ray: workers are objects of this process."""

import asyncio
import pickle
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tensordict import TensorDict

from verl import DataProto
from verl.protocol import DataProtoFuture
from verl.single_controller.base import ClassWithInitArgs, ResourcePool, Worker, WorkerGroup
from verl.single_controller.base.decorator import (
    MAGIC_ATTR,
    Dispatch,
    Execute,
    get_predefined_dispatch_fn,
    get_predefined_execute_fn,
    make_nd_compute_dataproto_dispatch_fn,
    register,
    register_dispatch_mode,
    update_dispatch_mode,
)
from verl.single_controller.base.dispatch import PADDING_SIZE_KEY, split_batches
from verl.single_controller.base.rendezvous import find_free_port
from verl.single_controller.base.worker_group import check_workers_alive
from verl.utils.ray_utils import get_event_loop, ray_noset_visible_devices


class Group(WorkerGroup):
    """As many places as asked for; `dp_ranks` and `speaks` describe a mesh."""

    def __init__(self, size: int, dp_ranks=None, speaks=None) -> None:
        super().__init__(ResourcePool([size]))
        self._workers = [None] * size
        self._query_dispatch_info = lambda mesh: dp_ranks
        self._query_collect_info = lambda mesh: speaks


def batch_of(rows: int, **kwargs) -> DataProto:
    return DataProto.from_dict({"a": torch.arange(rows)}, **kwargs)


def values(batch: DataProto | TensorDict) -> list[int]:
    return (batch if isinstance(batch, TensorDict) else batch.batch)["a"].tolist()


def dispatch(mode, group, *args, **kwargs):
    return get_predefined_dispatch_fn(mode)["dispatch_fn"](group, *args, **kwargs)


def collect(mode, group, output):
    return get_predefined_dispatch_fn(mode)["collect_fn"](group, output)


class TestPredefinedModes:
    def test_one_to_all(self):
        args, kwargs = dispatch(Dispatch.ONE_TO_ALL, Group(2), "x", y=1)
        assert args == (["x", "x"],) and kwargs == {"y": [1, 1]}
        assert collect(Dispatch.ONE_TO_ALL, Group(2), [3, 4]) == [3, 4]

    @pytest.mark.parametrize("mode", [Dispatch.ALL_TO_ALL, Dispatch.RANK_ZERO])
    def test_arguments_as_they_are(self, mode):
        assert dispatch(mode, Group(2), [1, 2], y="z") == (([1, 2],), {"y": "z"})

    def test_dp_compute_checks_lengths(self):
        assert dispatch(Dispatch.DP_COMPUTE, Group(2), (1, 2), y=[3, 4]) == (
            ([1, 2],),
            {"y": [3, 4]},
        )
        with pytest.raises(AssertionError, match="a list of 2 entries"):
            dispatch(Dispatch.DP_COMPUTE, Group(2), [1, 2, 3])

    def test_dp_compute_proto(self):
        (first,), kwargs = dispatch(Dispatch.DP_COMPUTE_PROTO, Group(2), batch_of(4), b=batch_of(2))
        assert [values(part) for part in first] == [[0, 1], [2, 3]]
        assert [values(part) for part in kwargs["b"]] == [[0], [1]]
        assert values(collect(Dispatch.DP_COMPUTE_PROTO, Group(2), first)) == [0, 1, 2, 3]
        assert collect(Dispatch.DP_COMPUTE_METRIC, Group(2), ["m0", "m1"]) == ["m0", "m1"]

    def test_dp_compute_proto_with_func(self):
        (func, parts), _ = dispatch(Dispatch.DP_COMPUTE_PROTO_WITH_FUNC, Group(2), max, batch_of(4))
        assert func == [max, max] and [values(part) for part in parts] == [[0, 1], [2, 3]]

    def test_references_become_a_future(self):
        future = collect(Dispatch.DP_COMPUTE_PROTO, Group(2), ["ref0", "ref1"])
        assert isinstance(future, DataProtoFuture) and future.futures == ["ref0", "ref1"]
        parts = future.chunk(2)
        whole = parts[1].collect_fn([batch_of(2), batch_of(2)])
        assert [values(part.dispatch_fn(whole)) for part in parts] == [[0, 1], [0, 1]]

    def test_direct_rollout_is_forbidden(self):
        with pytest.raises(NotImplementedError, match="called by the rollout engine"):
            dispatch(Dispatch.DIRECT_ROLLOUT_METHOD, Group(2))


class TestSplitting:
    def test_only_batches(self):
        with pytest.raises(AssertionError, match="not list"):
            split_batches(2, [1, 2])

    def test_uneven_rows_are_refused(self):
        with pytest.raises(AssertionError, match="3 rows do not split into 2"):
            split_batches(2, batch_of(3))
        with pytest.raises(AssertionError, match="3 rows do not split into 2"):
            split_batches(2, TensorDict({"a": torch.arange(3)}, batch_size=[3]))

    @pytest.mark.parametrize(("rows", "padding"), [(1, 3), (6, 2), (7, 1)])
    def test_padding_fills_up_a_copy(self, rows, padding):
        data = batch_of(rows, auto_padding=True)
        (parts,), kwargs = split_batches(4, data)
        assert kwargs == {PADDING_SIZE_KEY: padding}
        assert {len(part) for part in parts} == {(rows + padding) // 4}
        assert values(DataProto.concat(parts)) == list(range(rows)) + [rows - 1] * padding
        assert len(data) == rows

    def test_padding_needs_equal_lengths(self):
        with pytest.raises(AssertionError, match=r"batches of \[3, 5\] rows"):
            split_batches(2, batch_of(3, auto_padding=True), batch_of(5))

    def test_no_padding_where_none_is_missing(self):
        assert split_batches(2, batch_of(4, auto_padding=True))[1] == {}


class TestMesh:
    # 4 workers, two a data-parallel rank; the second of each speaks for it.
    group = Group(4, dp_ranks=[0, 0, 1, 1], speaks=[False, True, False, True])
    mode = make_nd_compute_dataproto_dispatch_fn("train")

    @pytest.mark.parametrize("as_tensordict", [False, True])
    def test_workers_of_a_rank_share_its_chunk(self, as_tensordict):
        data = batch_of(4).batch if as_tensordict else batch_of(4)
        (parts,), _ = self.mode["dispatch_fn"](self.group, data)
        assert [values(part) for part in parts] == [[0, 1], [0, 1], [2, 3], [2, 3]]
        assert parts[0] is parts[1]
        assert values(self.mode["collect_fn"](self.group, parts)) == [0, 1, 2, 3]

    def test_padding_counts_ranks_not_workers(self):
        _, kwargs = self.mode["dispatch_fn"](self.group, x=batch_of(3, auto_padding=True))
        assert kwargs.pop(PADDING_SIZE_KEY) == 1
        assert [values(part) for part in kwargs["x"]] == [[0, 1], [0, 1], [2, 2], [2, 2]]


class TestRegister:
    def test_registration_is_carried_by_the_method(self):
        @register(Dispatch.ONE_TO_ALL, Execute.RANK_ZERO, blocking=False)
        def method():
            """Doc."""

        assert getattr(method, MAGIC_ATTR) == {
            "dispatch_mode": Dispatch.ONE_TO_ALL,
            "execute_mode": Execute.RANK_ZERO,
            "blocking": False,
        }
        assert (method.__name__, method.__doc__) == ("method", "Doc.")

    def test_futures_are_materialised_for_plain_and_async_methods(self):
        class Ready(DataProtoFuture):
            def get(self):
                return "rows"

        @register()
        def plain(x, y):
            return x, y

        @register()
        async def slow(x, y):
            return x, y

        @register(materialize_futures=False)
        def lazy(x):
            return x

        future = Ready(collect_fn=None, futures=[])
        assert plain(future, y=future) == ("rows", "rows")
        assert asyncio.run(slow(future, y=1)) == ("rows", 1)
        assert lazy(future) is future

    @pytest.mark.parametrize(
        ("modes", "message"),
        [
            ({"dispatch_mode": "ONE_TO_ALL"}, "is not a dispatch mode"),
            ({"dispatch_mode": {"dispatch_fn": max}}, "collect_fn"),
            ({"execute_mode": Dispatch.RANK_ZERO}, "is not an execute mode"),
        ],
    )
    def test_bad_modes(self, modes, message):
        with pytest.raises(AssertionError, match=message):
            register(**modes)


class TestModes:
    def test_new_mode(self):
        register_dispatch_mode("test_only_mode", max, min)
        assert get_predefined_dispatch_fn(Dispatch.TEST_ONLY_MODE)["dispatch_fn"] is max
        update_dispatch_mode(Dispatch.TEST_ONLY_MODE, min, max)
        assert get_predefined_dispatch_fn(Dispatch["test_only_mode"])["dispatch_fn"] is min
        with pytest.raises(ValueError, match=r"Dispatch\.TEST_ONLY_MODE is already registered"):
            register_dispatch_mode("test_only_mode", max, min)

    def test_members(self):
        assert Dispatch.DP_COMPUTE_PROTO in Dispatch and "ONE_TO_ALL" in Dispatch
        assert "NOWHERE" not in Dispatch
        assert [mode.name for mode in Execute] == ["ALL", "RANK_ZERO"]
        assert pickle.loads(pickle.dumps(Dispatch.ONE_TO_ALL)) is Dispatch.ONE_TO_ALL

    def test_execute_functions(self):
        assert get_predefined_execute_fn(Execute.RANK_ZERO) == {
            "execute_fn_name": "execute_rank_zero"
        }


class TestWorker:
    def test_place_from_the_environment(self, monkeypatch):
        monkeypatch.setenv("RANK", "3")
        monkeypatch.setenv("WORLD_SIZE", "4")
        monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
        monkeypatch.setenv("MASTER_PORT", "29500")
        worker = Worker()
        assert (worker.rank, worker.world_size) == (3, 4)
        assert worker.get_master_addr_port() == ("10.0.0.1", "29500")

    def test_alone_without_a_group(self, monkeypatch):
        monkeypatch.delenv("RANK", raising=False)
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        assert (Worker().rank, Worker().world_size) == (0, 1)

    def test_one_place_a_mesh(self):
        worker = Worker()
        worker._register_dispatch_collect_info("train", dp_rank=1, is_collect=True)
        assert worker._query_dispatch_info("train") == 1
        assert worker._query_collect_info("train") is True
        with pytest.raises(ValueError, match="already has a place in mesh 'train'"):
            worker._register_dispatch_collect_info("train", dp_rank=0, is_collect=True)


def test_a_dead_worker_aborts_the_driver(monkeypatch, caplog):
    class AbortedError(Exception):
        pass

    def abort(signal_number):
        assert signal_number == signal.SIGABRT
        raise AbortedError

    monkeypatch.setattr(signal, "raise_signal", abort)
    lives = {"w0": iter([True, True]), "w1": iter([True, False])}
    with pytest.raises(AbortedError):
        check_workers_alive(["w0", "w1"], lambda worker: next(lives[worker]), gap_time=0)
    assert "worker 1 (w1) is dead" in caplog.text


def test_visible_devices_switch():
    assert not ray_noset_visible_devices({})
    assert ray_noset_visible_devices({"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"})


def test_event_loop_of_a_thread_without_one():
    with ThreadPoolExecutor(1) as pool:
        loop = pool.submit(get_event_loop).result()
    assert loop.run_until_complete(asyncio.sleep(0, "ran")) == "ran"
    loop.close()


def test_resource_pool():
    pool = ResourcePool([2, 1])
    pool.add_node(2)
    assert pool.world_size == 5 and pool.store == [2, 1, 2]
    assert pool.local_world_size_list() == [2, 2, 1, 2, 2]
    assert pool.local_rank_list() == [0, 1, 0, 0, 1]


def test_class_with_init_args():
    assert ClassWithInitArgs(dict, [("a", 1)], b=2)() == {"a": 1, "b": 2}


def test_free_port_can_be_bound():
    import socket

    with socket.socket() as listener:
        listener.bind(("", find_free_port()))
        listener.listen()
        assert 20000 <= listener.getsockname()[1] < 32000
