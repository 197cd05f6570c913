"""Weights reach vLLM's engines from GPU to GPU, by each transport and placement."""

from __future__ import annotations

import pytest
import torch

from .gpu_run import assert_in_sync, gpu_config, gpu_run, greedy, train

pytestmark = [pytest.mark.gpu, pytest.mark.slow, pytest.mark.timeout(900)]

ROLLOUT = "actor_rollout_ref.rollout"


def needs_gpus(count: int) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        torch.cuda.device_count() < count, reason=f"needs {count} CUDA devices"
    )


PLACEMENTS = [
    pytest.param([f"{ROLLOUT}.weight_sync=ipc"], id="ipc"),
    pytest.param([f"{ROLLOUT}.weight_sync=object_store"], id="object_store"),
    pytest.param(
        [f"{ROLLOUT}.weight_sync=nccl", f"{ROLLOUT}.mode=disaggregated", f"{ROLLOUT}.workers=1"],
        id="nccl",
        marks=needs_gpus(2),
    ),
    pytest.param(
        ["trainer.n_gpus_per_node=2", f"{ROLLOUT}.weight_sync=ipc"],
        id="ipc_two_ranks",
        marks=needs_gpus(2),
    ),
    pytest.param(
        ["trainer.n_gpus_per_node=2", f"{ROLLOUT}.tensor_model_parallel_size=2"],
        id="ipc_tensor_parallel",
        marks=needs_gpus(2),
    ),
    pytest.param(
        [
            f"{ROLLOUT}.mode=disaggregated",
            f"{ROLLOUT}.workers=2",
            f"{ROLLOUT}.weight_sync=nccl",
        ],
        id="nccl_two_engines",
        marks=needs_gpus(3),
    ),
    pytest.param(["actor_rollout_ref.model.lora_rank=8"], id="adapters"),
]


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_engines_follow_the_trainer(policy_path, placement):
    with gpu_run(gpu_config(policy_path, *placement)) as workers:
        workers.weights.sync(0)
        first = assert_in_sync(workers, 0)[0]
        for _ in range(2):
            train(workers, first)
        workers.weights.sync(1)
        second = assert_in_sync(workers, 1)[0]
        assert (first.token_ids, first.log_probs) != (second.token_ids, second.log_probs)


@pytest.mark.parametrize("transport", ["ipc", "object_store"])
def test_a_sleeping_engine_gives_its_memory_back_and_wakes_up_with_the_weights(
    policy_path, transport
):
    with gpu_run(gpu_config(policy_path, f"{ROLLOUT}.weight_sync={transport}")) as workers:
        workers.weights.sync(0)
        before = greedy(workers)
        free_awake, total = torch.cuda.mem_get_info()
        workers.rollouts.sleep()
        free_asleep, _ = torch.cuda.mem_get_info()
        # the engine was given 0.3 of the GPU; nearly all of it is cache
        assert free_asleep - free_awake > 0.2 * total
        workers.weights.sync(1)
        after = assert_in_sync(workers, 1)
        assert [g.token_ids for g in after] == [g.token_ids for g in before]
        assert torch.cuda.mem_get_info()[0] < free_asleep - 0.2 * total
