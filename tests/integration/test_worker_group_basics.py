"""Worker groups on a real local Ray cluster: calls, batches, places, environment."""

import os

import numpy as np
import pytest
import ray
import torch
import torch.distributed as dist

from verl import DataProto
from verl.single_controller.base import Worker
from verl.single_controller.base.decorator import (
    Dispatch,
    Execute,
    register,
)
from verl.single_controller.ray.base import (
    RayClassWithInitArgs,
    RayResourcePool,
    RayWorkerGroup,
)
from verl.utils.ray_utils import parallel_put

pytestmark = pytest.mark.slow


class Trainer(Worker):
    """Two ranks that take the same steps on different chunks."""

    def __init__(self, offset: int = 0) -> None:
        super().__init__()
        self.offset = offset
        dist.init_process_group("gloo")

    def plus(self, x):
        return self.offset + x

    def environment(self, *names):
        return [os.environ.get(name) for name in names]

    def all_ranks(self):
        ranks = torch.zeros(self.world_size, dtype=torch.int64)
        dist.all_gather_into_tensor(ranks, torch.tensor([self.rank]))
        return ranks.tolist()

    @register(Dispatch.ALL_TO_ALL, Execute.RANK_ZERO)
    def on_rank_zero(self, x, y):
        return self.offset + x + y

    @register(Dispatch.ONE_TO_ALL)
    def same_for_all(self, x, y):
        return self.offset + x + y

    @register(Dispatch.ALL_TO_ALL)
    def own_for_each(self, x, y):
        return self.offset + x + y

    @register(Dispatch.DP_COMPUTE_PROTO)
    def add_rank(self, data):
        data.batch["a"] += self.rank  # in place, on memory of the object store
        data.non_tensor_batch["seen_by"] = np.full(len(data), self.rank)
        data.meta_info["metrics"] = {"rank": self.rank}
        return data

    @register(Dispatch.DP_COMPUTE_METRIC)
    def count(self, data):
        return len(data)


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(num_cpus=16, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def pool() -> RayResourcePool:
    return RayResourcePool([2], use_gpu=False)


@pytest.fixture(scope="module")
def group(pool) -> RayWorkerGroup:
    return RayWorkerGroup(
        pool,
        RayClassWithInitArgs(Trainer, offset=10),
        name_prefix="basics",
        worker_env={"OMP_NUM_THREADS": "1", "MY_SETTING": "on"},
    )


def batch_of(rows: int) -> DataProto:
    names = np.array([f"row {i}" for i in range(rows)], dtype=object)
    return DataProto.from_dict({"a": torch.zeros(rows)}, {"name": names})


class TestCalls:
    def test_any_method_of_all_or_of_rank_zero(self, group):
        assert group.execute_all_sync("plus", 3) == [13, 13]
        assert group.execute_all_sync("plus", x=[3, 4]) == [13, 14]
        assert group.execute_rank_zero_sync("plus", 4) == 14

    def test_registered_methods(self, group):
        assert group.on_rank_zero(x=1, y=2) == 13
        assert group.same_for_all(1, y=2) == [13, 13]
        assert group.own_for_each([1, 2], y=[3, 4]) == [14, 16]

    def test_processes_meet(self, group):
        assert group.execute_all_sync("all_ranks") == [[0, 1], [0, 1]]

    def test_environment(self, group):
        names = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"]
        names += ["RAY_LOCAL_RANK", "RAY_LOCAL_WORLD_SIZE", "MY_SETTING", "OMP_NUM_THREADS"]
        first, second = group.execute_all_sync("environment", *names)
        assert first == ["0", "2", "0", "2", "0", "2", "on", "1"]
        assert second == ["1", "2", "1", "2", "1", "2", "on", "1"]

    def test_own_variables_cannot_be_overridden(self, pool):
        with pytest.raises(ValueError, match=r"worker_env may not set \['WORLD_SIZE'\]"):
            RayWorkerGroup(pool, RayClassWithInitArgs(Trainer), worker_env={"WORLD_SIZE": "9"})


class TestBatches:
    def test_chunked_and_concatenated(self, group):
        data = batch_of(6)
        result = group.add_rank(data)
        assert result.batch["a"].tolist() == [0, 0, 0, 1, 1, 1]
        assert result.non_tensor_batch["seen_by"].tolist() == [0, 0, 0, 1, 1, 1]
        assert result.non_tensor_batch["name"].tolist() == data.non_tensor_batch["name"].tolist()
        assert result.meta_info["metrics"] == {"rank": [0, 1]}
        assert data.batch["a"].sum() == 0  # the driver's batch is its own
        assert group.count(data) == [3, 3]

    def test_uneven_rows_are_refused(self, group):
        with pytest.raises(AssertionError, match="5 rows do not split into 2 equal chunks"):
            group.add_rank(batch_of(5))

    def test_stored_references_are_passed_on(self, group):
        refs = parallel_put([batch_of(2), batch_of(3)])
        assert group.execute_all_sync("count", refs) == [2, 3]


class TestParallelPut:
    def test_order_and_limits(self):
        data = list(range(20))
        assert ray.get(parallel_put(data, max_workers=4)) == data
        assert ray.get(parallel_put(["x", {"a": 2}, [3]])) == ["x", {"a": 2}, [3]]
        with pytest.raises(AssertionError, match="must not be empty"):
            parallel_put([])
