"""500 episodes in a real environment while its processes are killed at random, again and again."""

import asyncio
import importlib.util
import os
import random
import signal
import time
from collections import Counter
from contextlib import suppress
from dataclasses import replace

import psutil
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from agent_system.adapters.rows import to_data_proto
from agent_system.config import ActionFormatConfig, EnvConfig, PoolConfig, TaskSetConfig
from agent_system.environments.pool import EnvPool
from agent_system.environments.registry import bind_env
from agent_system.multi_turn_rollout import TrajectoryCollector
from agent_system.types import Episode, SamplingParams
from verl.workers.chat_template import ChatTemplate
from verl.workers.rollout.base import Generation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

EPISODES, SLOTS, GROUP_SIZE, MAX_STEPS = 500, 4, 5, 10
SEED = 0
SECONDS_BETWEEN_KILLS = (0.5, 2.0)
UNDISTURBED_END = 20  # episodes: all slots are busy before, so every death is met by an episode
THINKING_S = 0.01  # of the policy, a turn
MAX_PROMPT_LENGTH = 100_000

if importlib.util.find_spec("textworld_express"):
    ENVIRONMENT = {"env_name": "textworld_express/TextWorldExpressEnv", "options": {}}
    COMMANDS = ("look around", "move north", "move south", "move east", "move west", "take coin")
    TASKS = TaskSetConfig("train:100", tasks=["coin"])
else:
    WRAPPERS = "agent_system.environments.env_package.gymnasium_text.wrappers"
    ENVIRONMENT = {
        "env_name": "gymnasium/TextEnv",
        "options": {"id": "FrozenLake-v1", "wrapper": f"{WRAPPERS}:FrozenLakeText"},
    }
    COMMANDS = ("left", "down", "right", "up")
    TASKS = TaskSetConfig("train:100")


class ScriptedPolicy:
    """In the place of an engine: a random command, decided by the request's seed."""

    def __init__(self, tokenizer, thinking_s):
        self._responses = [tokenizer(command)["input_ids"] for command in COMMANDS]
        self._end = tokenizer.eos_token_id
        self._thinking_s = thinking_s

    async def generate(self, prompt_ids, sampling, *, trajectory_id):
        await asyncio.sleep(self._thinking_s)
        ids = (*random.Random(sampling.seed).choice(self._responses), self._end)
        return Generation(ids, (-1.0,) * len(ids), "stop", weight_version=0)

    def release(self, trajectory_id):
        pass


class DeadlyPolicy(ScriptedPolicy):
    """Ends the process of the only slot at every second turn of one episode."""

    def __init__(self, tokenizer, pool, victim):
        super().__init__(tokenizer, thinking_s=0.0)
        self._pool, self._victim = pool, victim
        self.turns = Counter()

    async def generate(self, prompt_ids, sampling, *, trajectory_id):
        self.turns[trajectory_id] += 1
        if trajectory_id == self._victim and self.turns[trajectory_id] % 2 == 0:
            os.kill(self._pool._slots[0].pid, signal.SIGKILL)
        return await super().generate(prompt_ids, sampling, trajectory_id=trajectory_id)


class Killer:
    """Ends the process of a random slot about every second, as a lack of memory would."""

    def __init__(self, pool):
        self._pool = pool
        self._random = random.Random(SEED)
        self.killed = []

    async def run(self):
        while True:
            await asyncio.sleep(self._random.uniform(*SECONDS_BETWEEN_KILLS))
            pids = [slot.pid for slot in self._pool._slots if slot.pid not in self.killed]
            self.killed.append(self._random.choice(pids))
            os.kill(self.killed[-1], signal.SIGKILL)


@pytest.fixture(scope="module")
def tokenizer():
    words = ["<unk>", "</s>", *dict.fromkeys(" ".join(COMMANDS).split())]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="</s>", pad_token="</s>"
    )
    wrapped.chat_template = (
        "{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }} </s>"
        "{% else %} {{ m.content }}{% endif %}{% endfor %}"
    )
    return wrapped


@pytest.fixture
def config(tmp_path):
    return EnvConfig(
        **ENVIRONMENT,
        max_steps=MAX_STEPS,
        action_format=ActionFormatConfig(kind="plain", stop=[]),
        train=TASKS,
        pool=PoolConfig(
            # it is not the environment's fault: a slot may well be killed several times in a row
            max_consecutive_replacements=100,
            log_dir=str(tmp_path / "env_logs"),
        ),
    )


@pytest.fixture
def collector_of(config, tokenizer):
    """The trainer's own rollout loop, of a pool."""
    prompts = bind_env(config).prompts(config.action_format)
    chat = ChatTemplate(tokenizer)
    return lambda pool: TrajectoryCollector(pool, prompts, chat, config, MAX_PROMPT_LENGTH)


@pytest.fixture
def open_pool(config):
    pools = []

    def make(slots=SLOTS):
        settings = replace(config.pool, slots_per_worker=slots)
        pools.append(EnvPool(bind_env(config), settings))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


@pytest.fixture
def episodes(config):
    tasks = bind_env(config).tasks(config.train)
    assert len(tasks) * GROUP_SIZE == EPISODES
    return [
        Episode(task, f"g{i}", f"g{i}/{member}")
        for i, task in enumerate(tasks)
        for member in range(GROUP_SIZE)
    ]


def test_every_episode_is_accounted_for_once_while_processes_are_killed(
    episodes, open_pool, collector_of, tokenizer, record_property
):
    pool = open_pool()
    policy = ScriptedPolicy(tokenizer, THINKING_S)
    arrived, killer = asyncio.run(play_and_kill(collector_of(pool), policy, episodes, pool))
    replacements = pool.stats().replacements
    last_pids = [slot.pid for slot in pool._slots]
    pool.close()

    # every episode once
    assert Counter(t.episode.traj_uid for t in arrived) == Counter(e.traj_uid for e in episodes)
    # every death is one replacement, and an episode is lost only to two of them
    assert len(killer.killed) >= 5
    assert replacements == len(killer.killed)
    lost = [t for t in arrived if t.reason == "env_error"]
    assert 2 * len(lost) <= replacements
    assert all(t.turns == [] and len(t.info["errors"]) == 2 for t in lost)
    # all others are what they are when nothing happens, turn by turn and token by token
    undisturbed_pool = open_pool()
    quick = ScriptedPolicy(tokenizer, thinking_s=0.0)
    undisturbed = asyncio.run(play(collector_of(undisturbed_pool), quick, episodes))
    undisturbed_pool.close()
    expected = {t.episode.traj_uid: signature(t) for t in undisturbed}
    played = [t for t in arrived if t.reason != "env_error"]
    assert [signature(t) for t in played] == [expected[t.episode.traj_uid] for t in played]
    assert {t.reason for t in played} >= {"truncated"} and len({t.success for t in played}) == 2
    # the batch has them and nothing else
    batch = to_data_proto(arrived, pad_token_id=1, context_kind="trajectory")
    assert Counter(batch.non_tensor_batch["traj_uid"]) == Counter(
        t.episode.traj_uid for t in played
    )
    # nothing is left of the processes and what they started
    assert wait_until_empty({*killer.killed, *last_pids}) == []
    record_property("killed", len(killer.killed))
    record_property("lost", len(lost))


def test_an_episode_that_loses_two_processes_is_dropped_whole(
    episodes, open_pool, collector_of, tokenizer
):
    pool = open_pool(slots=1)
    policy = DeadlyPolicy(tokenizer, pool, victim="g0/1")
    first, lost, last = asyncio.run(play(collector_of(pool), policy, episodes[:3]))
    assert (lost.reason, lost.turns, lost.episode_reward) == ("env_error", [], 0.0)
    assert ["process ended" in error for error in lost.info["errors"]] == [True, True]
    assert policy.turns["g0/1"] == 4  # two attempts of two turns
    assert pool.stats().replacements == 2
    assert first.turns and last.turns
    batch = to_data_proto([first, lost, last], pad_token_id=1, context_kind="trajectory")
    assert batch.non_tensor_batch["traj_uid"].tolist() == ["g0/0", "g0/2"]


async def play_and_kill(collector, policy, episodes, pool):
    """Trajectories in the order of their arrival, and the killer."""
    arrived = []
    killer = Killer(pool)
    kills = asyncio.create_task(killer.run())
    async for trajectory in collector.collect(policy, episodes, SamplingParams(), SEED):
        arrived.append(trajectory)
        if len(arrived) == len(episodes) - UNDISTURBED_END:
            kills.cancel()
            with suppress(asyncio.CancelledError):
                await kills
    return arrived, killer


async def play(collector, policy, episodes):
    return await collector.collect_all(policy, episodes, SamplingParams(), SEED)


def signature(trajectory):
    """All that training sees of a trajectory."""
    turns = [
        (
            turn.index,
            turn.prompt_ids.tolist(),
            turn.response_ids.tolist(),
            turn.observation,
            turn.reward,
        )
        for turn in trajectory.turns
    ]
    return (
        trajectory.reason,
        trajectory.success,
        trajectory.score,
        trajectory.episode_reward,
        turns,
    )


def wait_until_empty(groups, seconds=10.0):
    """Processes of these groups that are still there."""
    end = time.monotonic() + seconds
    while (left := members(groups)) and time.monotonic() < end:
        time.sleep(0.1)
    return left


def members(groups):
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            is_dead = process.status() == psutil.STATUS_ZOMBIE
            if os.getpgid(process.pid) in groups and not is_dead:
                found.append(process)
    return found
