"""Worker groups on a real local Ray cluster: calls, batches, places, environment."""

import os

import numpy as np
import pytest
import ray
import torch
import torch.distributed as dist
from tensordict import TensorDict

from verl import DataProto
from verl.protocol import DataProtoFuture
from verl.single_controller.base import Worker
from verl.single_controller.base.decorator import (
    Dispatch,
    Execute,
    make_nd_compute_dataproto_dispatch_fn,
    register,
)
from verl.single_controller.ray.base import (
    RayClassWithInitArgs,
    RayResourcePool,
    RayWorkerGroup,
    extract_pg_from_exist,
    merge_resource_pool,
    split_resource_pool,
)
from verl.utils.ray_utils import parallel_put
from verl.utils.seqlen_balancing import rearrange_micro_batches
from verl.utils.torch_functional import broadcast_dict_tensor

pytestmark = pytest.mark.slow


class Trainer(Worker):
    """Two ranks that take the same steps on different chunks."""

    def __init__(self, offset: int = 0) -> None:
        super().__init__()
        self.offset = offset
        dist.init_process_group("gloo")
        self._register_dispatch_collect_info(
            "tensor_parallel", dp_rank=0, is_collect=self.rank == 0
        )

    def plus(self, x):
        return self.offset + x

    def environment(self, *names):
        return [os.environ.get(name) for name in names]

    def all_ranks(self):
        ranks = torch.zeros(self.world_size, dtype=torch.int64)
        dist.all_gather_into_tensor(ranks, torch.tensor([self.rank]))
        return ranks.tolist()

    def micro_batch_counts(self):
        # Rank 0 has 2 rows of 10 tokens, rank 1 has 4.
        mask = torch.ones(2 + 2 * self.rank, 10, dtype=torch.int64)
        batch = TensorDict({"attention_mask": mask}, batch_size=[len(mask)])
        agreed, _ = rearrange_micro_batches(batch, max_token_len=20)
        own, _ = rearrange_micro_batches(batch, max_token_len=20, same_micro_num_in_dp=False)
        return len(agreed), len(own)

    def broadcast_from_rank_one(self):
        tensors = {"b": torch.tensor([self.rank]), "a": torch.tensor([10 * self.rank])}
        broadcast_dict_tensor(tensors, src=1, group=None)
        return {key: tensor.item() for key, tensor in tensors.items()}

    @register(Dispatch.ALL_TO_ALL, Execute.RANK_ZERO)
    def on_rank_zero(self, x, y):
        return self.offset + x + y

    @register(Dispatch.ONE_TO_ALL, blocking=False)
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

    @register(Dispatch.DP_COMPUTE_PROTO, blocking=False)
    def add_rank_later(self, data):
        return self.add_rank(data)

    @register(Dispatch.DP_COMPUTE_METRIC)
    def count(self, data):
        return len(data)

    @register(make_nd_compute_dataproto_dispatch_fn("tensor_parallel"))
    def whole_batch(self, data):
        return DataProto.from_dict({"rows": torch.tensor([len(data), self.rank])})


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


def batch_of(rows: int, **kwargs) -> DataProto:
    names = np.array([f"row {i}" for i in range(rows)], dtype=object)
    return DataProto.from_dict({"a": torch.zeros(rows)}, {"name": names}, **kwargs)


class TestCalls:
    def test_any_method_of_all_or_of_rank_zero(self, group):
        assert group.execute_all_sync("plus", 3) == [13, 13]
        assert group.execute_all_sync("plus", x=[3, 4]) == [13, 14]
        assert ray.get(group.execute_all_async("plus", 3)) == [13, 13]
        assert group.execute_rank_zero_sync("plus", 4) == 14

    def test_registered_methods(self, group):
        assert group.on_rank_zero(x=1, y=2) == 13
        assert ray.get(group.same_for_all(1, y=2)) == [13, 13]
        assert group.own_for_each([1, 2], y=[3, 4]) == [14, 16]

    def test_functions_sent_by_the_driver(self, group):
        def square(worker, data):
            data.batch["a"] = data.batch["a"] + worker.rank
            return data

        result = group.execute_with_func_generator(square, batch_of(4))
        assert result.batch["a"].tolist() == [0, 0, 1, 1]
        assert group.execute_func_rank_zero(max, 1, 2) == 2

    def test_processes_meet(self, group):
        assert group.execute_all_sync("all_ranks") == [[0, 1], [0, 1]]

    def test_ranks_agree_on_the_number_of_micro_batches(self, group):
        # ceil(20 / 20) = 1 and ceil(40 / 20) = 2: both run 2 unless told otherwise.
        assert group.execute_all_sync("micro_batch_counts") == [(2, 1), (2, 2)]

    def test_broadcast(self, group):
        assert group.execute_all_sync("broadcast_from_rank_one") == [{"b": 1, "a": 10}] * 2

    def test_environment(self, group):
        names = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"]
        names += ["RAY_LOCAL_RANK", "RAY_LOCAL_WORLD_SIZE", "MY_SETTING", "OMP_NUM_THREADS"]
        first, second = group.execute_all_sync("environment", *names)
        assert first == ["0", "2", "0", "2", "0", "2", "on", "1"]
        assert second == ["1", "2", "1", "2", "1", "2", "on", "1"]

    def test_own_variables_cannot_be_overridden(self, pool):
        with pytest.raises(ValueError, match=r"worker_env may not set \['WORLD_SIZE'\]"):
            RayWorkerGroup(pool, RayClassWithInitArgs(Trainer), worker_env={"WORLD_SIZE": "9"})

    def test_found_again_by_name(self, group):
        again = RayWorkerGroup.from_detached(
            worker_names=group.worker_names, ray_cls_with_init=RayClassWithInitArgs(Trainer)
        )
        assert again.world_size == 2 and again.on_rank_zero(1, 2) == 13


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

    @pytest.mark.parametrize("rows", [1, 5])
    def test_uneven_rows_with_padding(self, group, rows):
        data = batch_of(rows, auto_padding=True)
        assert len(group.add_rank(data)) == len(group.add_rank(data=data)) == rows
        assert len(group.add_rank_later(data).get()) == rows == len(data)

    def test_uneven_rows_without_padding(self, group):
        with pytest.raises(AssertionError, match="5 rows do not split into 2 equal chunks"):
            group.add_rank(batch_of(5))

    def test_a_future_goes_from_method_to_method(self, group):
        future = group.add_rank_later(batch_of(4))
        assert isinstance(future, DataProtoFuture)
        assert group.count(future) == [2, 2]

    def test_mesh_where_both_ranks_take_all_rows(self, group):
        assert group.whole_batch(batch_of(3)).batch["rows"].tolist() == [3, 0]

    def test_stored_references_are_passed_on(self, group):
        refs = parallel_put([batch_of(2), batch_of(3)])
        assert group.execute_all_sync("count", refs) == [2, 3]


class Probe(Worker):
    def places(self):
        return os.environ["RANK"], os.environ["WORLD_SIZE"], os.environ["LOCAL_WORLD_SIZE"]


class TestPools:
    def places_of(self, pool) -> list:
        return RayWorkerGroup(pool, RayClassWithInitArgs(Probe)).execute_all_sync("places")

    def test_split(self):
        pool = RayResourcePool([3], use_gpu=False)
        left, right = split_resource_pool(pool, [1, 2])
        assert (left.world_size, right.world_size, right.start_bundle_index) == (1, 2, 1)
        assert self.places_of(right) == [("0", "2", "2"), ("1", "2", "2")]
        second, third = split_resource_pool(right, 1)
        assert (second.start_bundle_index, third.start_bundle_index) == (1, 2)
        bundles = [part.places("STRICT_PACK", None)[0].bundle for part in (left, second, third)]
        assert bundles == [0, 1, 2]
        with pytest.raises(ValueError, match="do not add up to the pool's 3 places"):
            split_resource_pool(pool, 2)

    def test_merge(self):
        one, two = (RayResourcePool([1], use_gpu=False) for _ in range(2))
        merged = merge_resource_pool(one, two)
        # Both placement groups are on this one node.
        assert self.places_of(merged) == [("0", "2", "2"), ("1", "2", "2")]
        with pytest.raises(AssertionError, match="max_colocate_count"):
            merge_resource_pool(one, RayResourcePool([1], use_gpu=False, max_colocate_count=3))

    def test_groups_of_other_pools_are_taken_largest_first(self):
        pools = {"a": RayResourcePool([1, 2], use_gpu=False), "b": RayResourcePool([1])}
        wanted = RayResourcePool([1, 2], use_gpu=False)
        chosen = extract_pg_from_exist(pools, ["a"], wanted)
        assert [group.bundle_count for group in chosen] == [1, 2]
        with pytest.raises(AssertionError, match="no placement group is left for 3 workers"):
            extract_pg_from_exist(pools, ["a"], RayResourcePool([3]))
        with pytest.raises(AssertionError, match="3 nodes wanted, 2 groups found"):
            extract_pg_from_exist(pools, ["a"], RayResourcePool([1, 1, 1]))


class TestParallelPut:
    def test_order_and_limits(self):
        data = list(range(20))
        assert ray.get(parallel_put(data, max_workers=4)) == data
        assert ray.get(parallel_put(["x", {"a": 2}, [3]])) == ["x", {"a": 2}, [3]]
        with pytest.raises(AssertionError, match="must not be empty"):
            parallel_put([])
