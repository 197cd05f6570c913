"""vLLM's engine process is killed while a rollout worker plays ScienceWorld."""

import os
import signal

import numpy as np
import psutil
import pytest
import ray
import torch

from agent_system.adapters.rollout_worker import RolloutWorker
from agent_system.adapters.rows import to_data_proto
from agent_system.adapters.setup import load_tasks
from agent_system.config import (
    ActionFormatConfig,
    EnvConfig,
    GroupConfig,
    PoolConfig,
    TaskSetConfig,
)
from agent_system.types import Episode, SamplingParams
from verl.config.algorithm import DataConfig
from verl.config.plan import make_plan
from verl.config.root import PPOConfig
from verl.config.trainer import RunConfig
from verl.workers.rollout.rollout_workers import RolloutPlacement, RolloutWorkers
from verl.workers.weight_sync import WeightUpdate, pack_weights

from ..random_policy import random_llama, write_random_llama

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]

MAX_PROMPT, MAX_RESPONSE = 1500, 16
SAMPLING = SamplingParams(max_tokens=MAX_RESPONSE)


@pytest.fixture
def config(tmp_path):
    config = PPOConfig(
        env=EnvConfig(
            max_steps=10,
            rollout=GroupConfig(n=4),
            action_format=ActionFormatConfig(kind="plain"),
            pool=PoolConfig(slots_per_worker=2),
            train=TaskSetConfig(tasks=["find-living-thing", "find-animal"], max_tasks=2),
            val={},
            options={"observation": "compact"},
        ),
        epo=None,
        trainer=RunConfig(default_local_dir=str(tmp_path)),
        data=DataConfig(max_prompt_length=MAX_PROMPT, max_response_length=MAX_RESPONSE),
    )
    config.actor_rollout_ref.model.path = write_random_llama(tmp_path / "policy")
    config.actor_rollout_ref.rollout.name = "vllm"
    config.actor_rollout_ref.rollout.cpu_kv_cache_gb = 0.25
    return config


@pytest.fixture
def group(config):
    """One worker, with the engine's own weights."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    place = RolloutPlacement("SPREAD", num_cpus=1, num_gpus=0)
    group = RolloutWorkers(
        RolloutWorker, config, make_plan(config), [place], {"OMP_NUM_THREADS": "1"}
    )
    try:
        group.wait_until_started()
        yield group
    finally:
        group.close()
        ray.shutdown()


def worker_process(group):
    return psutil.Process(ray.get(group.workers[0].__ray_call__.remote(lambda self: os.getpid())))


def engine_processes(process):
    """vLLM names its engine's process."""
    return [p for p in process.children(recursive=True) if "EngineCore" in " ".join(p.cmdline())]


def kill_at_first(processes, arrived):
    """A callback that kills them when the first trajectory arrives."""

    def on_trajectory(trajectory):
        arrived.append(trajectory.episode.traj_uid)
        if len(arrived) == 1:
            for process in processes:
                process.send_signal(signal.SIGKILL)

    return on_trajectory


def check_tokens(trajectories, model):
    """They were sampled by `model`, before and after whatever happened."""
    data = to_data_proto(trajectories, pad_token_id=0, context_kind="trajectory")
    attention = data.batch["attention_mask"]
    positions = (attention.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = model(
            data.batch["input_ids"], attention_mask=attention, position_ids=positions
        ).logits
    width_T = data.batch["response_mask"].shape[1]
    log_probs = logits[:, -width_T - 1 : -1].log_softmax(-1)
    expected = log_probs.gather(-1, data.batch["input_ids"][:, -width_T:, None])[..., 0]
    mask = data.batch["response_mask"].bool()
    np.testing.assert_allclose(data.batch["rollout_log_probs"][mask], expected[mask], atol=2e-3)


def test_a_rollout_survives_its_engine_and_then_its_worker(config, group):
    trained = random_llama(seed=1)
    episodes = [
        Episode(task, f"g{i}", f"g{i}/{member}")
        for i, task in enumerate(load_tasks(config, "train"))
        for member in range(config.env.rollout.n)
    ]
    names = sorted(episode.traj_uid for episode in episodes)
    tensors = pack_weights({name: p.detach() for name, p in trained.named_parameters()})
    group.update_weights(ray.put(WeightUpdate(7, tensors)))

    worker = worker_process(group)
    engines = engine_processes(worker)
    assert engines
    arrived = []
    trajectories = group.collect(episodes, SAMPLING, 3, kill_at_first(engines, arrived))
    assert sorted(arrived) == names
    assert all(t.num_turns > 0 for t in trajectories)
    metrics = group.metrics()
    assert metrics["rollout/engine_restarts"] == 1
    assert metrics["rollout/worker_restarts"] == 0
    assert metrics["rollout/request_timeouts"] == 0
    assert {turn.weight_version for t in trajectories for turn in t.turns} == {7}
    check_tokens(trajectories, trained)
    assert not any(process.is_running() for process in engines)

    processes = [worker, *worker.children(recursive=True)]
    arrived = []
    trajectories = group.collect(episodes, SAMPLING, 4, kill_at_first([worker], arrived))
    assert sorted(arrived) == names
    assert group.metrics()["rollout/worker_restarts"] == 1
    assert {turn.weight_version for t in trajectories for turn in t.turns} == {7}
    check_tokens(trajectories, trained)
    psutil.wait_procs(processes, timeout=30)
    assert [process for process in processes if process.is_running()] == []

    processes = worker_process(group).children(recursive=True)
    group.close()
    psutil.wait_procs(processes, timeout=30)
    assert [process for process in processes if process.is_running()] == []
