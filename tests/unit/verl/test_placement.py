"""Where engines go: counts, bundles and shares worked out by hand. Nothing is reserved."""

from __future__ import annotations

import pytest

from verl.config import machine as machine_module
from verl.config.compose import compose_config
from verl.config.machine import Machine, check_machine
from verl.config.plan import make_plan
from verl.single_controller.ray.base import RayResourcePool
from verl.single_controller.ray.resource_pool import Place
from verl.trainer.ppo import cluster
from verl.trainer.ppo.placement import engine_pool, rollout_placements, trainer_pool
from verl.utils.errors import UserError

ROOMY = Machine(cores=64, memory_gb=500.0, gpus=8)
ROLLOUT = "actor_rollout_ref.rollout"


def config(gpus=4, nodes=1, tp=1, workers=None, mode="colocated", *overrides):
    return compose_config(
        [
            "actor_rollout_ref.model.path=m",
            f"trainer.n_gpus_per_node={gpus}",
            f"trainer.nnodes={nodes}",
            f"{ROLLOUT}.tensor_model_parallel_size={tp}",
            f"{ROLLOUT}.workers={'null' if workers is None else workers}",
            f"{ROLLOUT}.mode={mode}",
            f"{ROLLOUT}.name=vllm",
            "trainer.device=cuda",
            *overrides,
        ],
        "ppo_trainer",
    )[1]


@pytest.fixture
def with_vllm(monkeypatch):
    """Whether or not it is installed here."""
    monkeypatch.setattr(machine_module, "is_installed", lambda package: True)


@pytest.fixture
def places(monkeypatch):
    """What a cluster would reserve: a placement group for each entry of `store`."""

    def reserve(pool, strategy, device):
        assert (strategy, device) == ("STRICT_PACK", "cuda")
        return [
            Place(f"group{node}", bundle, f"node{node}", bundle, count)
            for node, count in enumerate(pool.store)
            for bundle in range(count)
        ]

    monkeypatch.setattr(RayResourcePool, "places", reserve)


def summary(placement):
    strategy = placement.strategy
    assert strategy.placement_group_capture_child_tasks is True
    return strategy.placement_group, strategy.placement_group_bundle_index, placement.num_gpus


@pytest.mark.parametrize(
    ("asked", "count", "per_node", "processes"),
    [
        (config(), 4, 4, 4),  # one engine beside each trainer
        (config(tp=2), 2, 2, 4),  # 4 / 2
        (config(gpus=4, nodes=2, tp=4), 2, 1, 4),  # 8 / 4, one a node
        (config(gpus=8, nodes=2, workers=3), 3, 2, 2),  # ceil(3 / 2) on the fuller node
        (config(gpus=1, tp=2), 1, 1, 2),  # a CPU: one trainer process, an engine of two
        (config(gpus=4, workers=2, tp=2, mode="disaggregated"), 2, 2, 4),
    ],
)
def test_counts(asked, count, per_node, processes):
    plan = make_plan(asked)
    assert plan.rollout_workers == count
    assert plan.rollout_workers_per_node == per_node
    assert plan.engine_processes_per_node == processes


def test_colocated_engines_take_half_of_the_gpu_of_their_trainer(places):
    asked = config(gpus=2, nodes=2)
    pool = trainer_pool(asked, make_plan(asked))
    found = rollout_placements(asked, make_plan(asked), pool)
    assert [summary(placement) for placement in found] == [
        ("group0", 0, 0.5), ("group0", 1, 0.5), ("group1", 0, 0.5), ("group1", 1, 0.5),
    ]  # fmt: skip
    assert all(placement.env_vars == {} for placement in found)
    # two groups share a GPU: the trainer and the engine, each with a CPU
    assert pool.share("cuda") == {"CPU": 1.0, "GPU": 0.5}


def test_a_tensor_parallel_engine_spans_neighbouring_bundles_of_one_node(places):
    asked = config(gpus=4, nodes=2, tp=2)
    found = rollout_placements(asked, make_plan(asked), trainer_pool(asked, make_plan(asked)))
    # the worker itself needs no GPU: vLLM's actors on the bundles do
    assert [summary(placement) for placement in found] == [
        ("group0", 0, 0), ("group0", 2, 0), ("group1", 0, 0), ("group1", 2, 0),
    ]  # fmt: skip
    assert [placement.env_vars["VLLM_RAY_BUNDLE_INDICES"] for placement in found] == [
        "0,1", "2,3", "0,1", "2,3",
    ]  # fmt: skip
    assert {placement.env_vars["VLLM_RAY_PER_WORKER_GPUS"] for placement in found} == {"0.5"}


@pytest.mark.parametrize(("tp", "own", "bundles"), [(1, 1.0, None), (2, 0, "0,1")])
def test_disaggregated_engines_get_whole_gpus(places, tp, own, bundles):
    asked = config(2, 1, tp, 3, "disaggregated")
    plan = make_plan(asked)
    assert engine_pool(asked, plan).store == [tp] * 3  # a placement group each, so each on one node
    trainers = trainer_pool(asked, plan)
    assert trainers.share("cuda") == {"CPU": 1.0, "GPU": 1.0}
    found = rollout_placements(asked, plan, trainers)
    assert [summary(placement) for placement in found] == [
        ("group0", 0, own), ("group1", 0, own), ("group2", 0, own),
    ]  # fmt: skip
    for placement in found:
        assert placement.env_vars.get("VLLM_RAY_BUNDLE_INDICES") == bundles
        assert placement.env_vars.get("VLLM_RAY_PER_WORKER_GPUS") == (bundles and "1.0")


@pytest.mark.parametrize("mode", ["colocated", "disaggregated"])
def test_on_a_cpu_workers_are_spread_processes(mode):
    asked = config(2, 1, 1, 3, mode, "trainer.device=cpu")
    plan = make_plan(asked)
    pool = trainer_pool(asked, plan)
    assert (pool.use_gpu, pool.max_colocate_count) == (False, 1)
    for placement in rollout_placements(asked, plan, pool):
        assert (placement.strategy, placement.num_cpus, placement.num_gpus) == ("SPREAD", 1, 0)
    assert len(rollout_placements(asked, plan, pool)) == 3


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            config(4, 1, 2, None, "colocated", f"{ROLLOUT}.name=hf"),
            "tensor_model_parallel_size=2 needs rollout.name=vllm.*hf; set 1",
        ),
        (config(gpus=4, tp=3), "=3 does not divide trainer.n_gpus_per_node=4"),
        # 2 nodes * 2 GPUs hold two engines of 2, but none of 4: it would span the nodes
        (config(gpus=2, nodes=2, tp=4), "=4 does not divide trainer.n_gpus_per_node=2"),
        (config(gpus=4, tp=2, workers=3), "workers=3 engines of 2 GPUs .* 4 GPUs.* to 2"),
        (config(mode="disaggregated"), "has to know how many; set .*rollout.workers"),
        (
            config(4, 1, 1, None, "colocated", "trainer.async_steps=1"),
            "async_steps=1 .* same GPUs .*mode=disaggregated",
        ),
    ],
)
def test_engines_without_a_place_are_refused(asked, message, with_vllm):
    with pytest.raises(UserError, match=message):
        check_machine(asked, make_plan(asked), ROOMY)


@pytest.mark.parametrize(
    "asked",
    [
        config(gpus=4, tp=2, workers=2),
        config(2, 1, 4, 1, "disaggregated", "trainer.async_steps=1"),
        # processes have no GPUs to share
        config(1, 1, 2, None, "colocated", "trainer.device=cpu"),
        config(4, 1, 1, None, "colocated", "trainer.async_steps=1", "trainer.device=cpu"),
    ],
)
def test_what_fits_passes(asked, with_vllm):
    assert check_machine(asked, make_plan(asked), ROOMY) is None


def test_each_schedule_is_planned_over_the_steps_that_train_its_model(monkeypatch):
    planned = {}

    class Group:
        """Stands for the workers of a role."""

        def __init__(self, role=None, **_):
            self.role = role

        def spawn(self, prefix_set):
            return {role: Group(role) for role in prefix_set}

        def init_model(self, total_steps):
            planned[self.role] = total_steps

    monkeypatch.setattr(cluster, "RayWorkerGroup", Group)
    monkeypatch.setattr(cluster, "create_colocated_worker_cls", lambda class_dict: None)
    asked = config(1, 1, 1, None, "colocated", "algo=ppo", "trainer.critic_warmup=4")
    cluster.start_trainers(asked, make_plan(asked), trainer_pool(asked, make_plan(asked)), None, 10)
    # 10 steps, in the first 4 of which only the critic is trained
    assert planned == {"actor": 6, "critic": 10}
