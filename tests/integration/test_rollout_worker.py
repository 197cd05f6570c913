"""A rollout worker as a Ray actor: ScienceWorld, a tiny model, exact tokens in the batch."""

import os
import signal
from dataclasses import replace

import numpy as np
import psutil
import pytest
import ray
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from agent_system.adapters.rollout_worker import RolloutWorker
from agent_system.adapters.rows import episode_metrics, to_data_proto
from agent_system.adapters.setup import check_environment, load_tasks
from agent_system.config import (
    ActionFormatConfig,
    ContextConfig,
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

from ..waiting import all_gone

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

TEXT = (
    "<unk> </s> <obs> <act> : , task find a living thing first focus on then move teleport to "
    "kitchen hallway bathroom workshop greenhouse outside look around box red blue green orange"
)
WORDS = TEXT.split()
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }} </s>"
    "{% else %}<obs> {{ m.content }} <act>{% endif %}{% endfor %}"
)
TEMPERATURE = 0.7


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    """A random Llama with a word-level tokenizer."""
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="</s>", pad_token="</s>"
    )
    tokenizer.chat_template = TEMPLATE
    path = tmp_path_factory.mktemp("policy")
    random_model(seed=0).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def random_model(seed):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.5,  # far from uniform, so that a wrong log-prob shows
        eos_token_id=1,
        pad_token_id=1,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def cluster():
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def make_config(model_path, kind, run_dir):
    config = PPOConfig(
        env=EnvConfig(
            max_steps=4,
            rollout=GroupConfig(n=2),
            context=ContextConfig(kind=kind, history_length=2),
            action_format=ActionFormatConfig(kind="plain"),
            pool=PoolConfig(slots_per_worker=2),
            train=TaskSetConfig(tasks=["find-living-thing", "find-animal"], max_tasks=2),
            val={},
            options={"observation": "compact"},
        ),
        epo=None,
        trainer=RunConfig(default_local_dir=str(run_dir)),
        data=DataConfig(max_prompt_length=400, max_response_length=6),
    )
    config.actor_rollout_ref.model.path = str(model_path)
    config.actor_rollout_ref.rollout.name = "hf"
    return config


def make_episodes(config):
    return [
        Episode(task, f"g{i}", f"g{i}/{member}")
        for i, task in enumerate(load_tasks(config, "train"))
        for member in range(config.env.rollout.n)
    ]


def start_worker(config):
    worker = ray.remote(RolloutWorker).options(num_cpus=1).remote(config, make_plan(config), 0)
    ray.get(worker.start.remote())
    return worker


def collect(worker, episodes, seed):
    sampling = SamplingParams(temperature=TEMPERATURE, max_tokens=6)
    stream = worker.collect.options(num_returns="streaming").remote(episodes, sampling, seed)
    finished = {t.episode.traj_uid: t for t in (ray.get(item) for item in stream)}
    return [finished[episode.traj_uid] for episode in episodes]


def processes_of(worker):
    pid = ray.get(worker.__ray_call__.remote(lambda self: os.getpid()))
    return psutil.Process(pid).children(recursive=True)


def recomputed_log_probs(model, batch):
    """A plain forward over the rows: log softmax(logits / temperature) of each response token."""
    attention = batch["attention_mask"]
    positions = (attention.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = model(batch["input_ids"], attention_mask=attention, position_ids=positions).logits
    width_T = batch["response_mask"].shape[1]
    log_probs = (logits[:, -width_T - 1 : -1] / TEMPERATURE).log_softmax(-1)
    return log_probs.gather(-1, batch["input_ids"][:, -width_T:, None])[..., 0]


@pytest.mark.parametrize("kind", ["trajectory", "turn"])
def test_a_rollout_through_ray_trains_on_what_was_sampled(cluster, model_path, tmp_path, kind):
    config = make_config(model_path, kind, tmp_path)
    check_environment(config)
    episodes = make_episodes(config)
    worker = start_worker(config)
    trained = random_model(seed=1)  # not the one that the worker started with
    update = ray.put(WeightUpdate(5, pack_weights(trained.state_dict())))
    ray.get(worker.update_weights.remote(update))
    trajectories = collect(worker, episodes, seed=3)

    assert [t.episode for t in trajectories] == episodes
    assert all(t.reason in ("success", "failure", "truncated") for t in trajectories)
    data = to_data_proto(trajectories, pad_token_id=1, context_kind=kind)
    turns = sum(t.num_turns for t in trajectories)
    assert len(data) == (turns if kind == "turn" else len(episodes))
    mask = data.batch["response_mask"].bool()
    assert int(mask.sum()) == sum(len(turn.response_ids) for t in trajectories for turn in t.turns)
    expected = recomputed_log_probs(trained, data.batch)
    np.testing.assert_allclose(
        data.batch["rollout_log_probs"][mask], expected[mask], atol=1e-3, rtol=0
    )
    assert set(data.non_tensor_batch["weight_version"]) == {5}
    assert episode_metrics(trajectories)["episode/length/max"] <= 4

    # Members of a group share the start and sample for themselves.
    prompts = [sorted(t.turns[0].prompt_ids.tolist()) for t in trajectories]
    assert prompts[0] == prompts[1] != prompts[2] == prompts[3]
    responses = {tuple(turn.response_ids.tolist()) for t in trajectories for turn in t.turns}
    assert len(responses) > 1

    stats = ray.get(worker.stats.remote())
    assert stats["env/slots"] == 2
    assert stats["engine/generated_tokens"] == int(mask.sum())

    processes = processes_of(worker)
    assert processes
    ray.get(worker.close.remote())
    assert all_gone(processes)
    ray.kill(worker)


def test_a_killed_worker_leaves_no_environment_process(cluster, model_path, tmp_path):
    worker = start_worker(make_config(model_path, "trajectory", tmp_path))
    processes = processes_of(worker)
    assert any("java" in process.name() for process in processes)
    ray.kill(worker)
    assert all_gone(processes)


def signature(trajectory):
    """What an episode was, but for seconds and rounding."""
    turns = [
        (t.prompt_ids.tolist(), t.response_ids.tolist(), t.observation, t.weight_version)
        for t in trajectory.turns
    ]
    return trajectory.episode, trajectory.reason, trajectory.score, turns


def test_a_worker_killed_in_mid_rollout_changes_nothing(cluster, model_path, tmp_path):
    config = make_config(model_path, "trajectory", tmp_path)
    episodes = make_episodes(config)
    places = [RolloutPlacement("SPREAD", num_cpus=1, num_gpus=0)] * 2
    plan = replace(make_plan(config), rollout_workers=2)
    group = RolloutWorkers(RolloutWorker, config, plan, places, {"OMP_NUM_THREADS": "1"})
    group.wait_until_started()
    update = ray.put(WeightUpdate(5, pack_weights(random_model(seed=1).state_dict())))
    group.update_weights(update)
    sampling = SamplingParams(temperature=TEMPERATURE, max_tokens=6)
    undisturbed = group.collect(episodes, sampling, seed=3)
    quiet = group.metrics()
    assert quiet["rollout/generated_tokens"] == sum(
        len(turn.response_ids) for t in undisturbed for turn in t.turns
    )
    assert 0 < quiet["rollout/engine_idle_share"] < 1
    assert 0 < quiet["rollout/prefix_cache_hit_rate"] < 1

    victim = ray.get(group.workers[0].__ray_call__.remote(lambda self: os.getpid()))
    processes = [psutil.Process(victim), *psutil.Process(victim).children(recursive=True)]
    arrived = []

    def kill_once(trajectory):
        arrived.append(trajectory.episode.traj_uid)
        if len(arrived) == 1:
            os.kill(victim, signal.SIGKILL)

    disturbed = group.collect(episodes, sampling, seed=3, on_trajectory=kill_once)
    assert sorted(arrived) == sorted(episode.traj_uid for episode in episodes)
    assert [signature(t) for t in disturbed] == [signature(t) for t in undisturbed]
    assert {turn.weight_version for t in disturbed for turn in t.turns} == {5}
    assert group.metrics()["rollout/worker_restarts"] == 1
    assert all_gone(processes)

    living = [process for rank in range(2) for process in processes_of(group.workers[rank])]
    group.sleep()
    group.close()
    assert all_gone(living)
