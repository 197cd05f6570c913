"""The rollout loop with a scripted environment and a deterministic policy."""

import asyncio
import logging
import random
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from agent_system.config import ContextConfig, EnvConfig, PoolConfig, RewardConfig
from agent_system.environments.pool import EnvWorkerError
from agent_system.multi_turn_rollout import TrajectoryCollector
from agent_system.multi_turn_rollout.collector import starting_order
from agent_system.multi_turn_rollout.episode import request_seed
from agent_system.multi_turn_rollout.summary import episode_metrics, trajectory_record
from agent_system.types import (
    Episode,
    Observation,
    ParsedAction,
    SamplingParams,
    StepResult,
    Task,
)
from verl.workers.chat_template import ChatTemplate
from verl.workers.rollout.base import Generation

WORDS = ["<unk>", "</s>", "task", "left", "right", "at", *map(str, range(10))]
SAMPLING = SamplingParams(max_tokens=3)


@pytest.fixture(scope="module")
def tokenizer():
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="</s>", pad_token="</s>"
    )
    wrapped.chat_template = (
        "{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }} </s>"
        "{% else %} {{ m.content }}{% endif %}{% endfor %}"
    )
    return wrapped


class Prompts:
    def system(self, task_text):
        return None

    def first(self, task_text, observation):
        return f"{task_text} {observation.text}"

    def next(self, observation):
        return observation.text

    def turn(self, task_text, history, observation, step):
        past = " ".join(turn.action.text for turn in history)
        return f"{task_text} {past} {observation.text}"

    def parse(self, response, observation):
        return ParsedAction(response, response in ("left", "right"))


class CorridorEnv:
    """Walk right `goal` times to win; walking left from the start loses. Takes a random while."""

    def __init__(self, pool):
        self._pool = pool
        self._rng = random.Random(0)

    async def reset(self, task):
        self._pool.started.append(task.key)
        self._task, self._at = task, 0
        await self._work("reset")
        return Observation("at 0"), {"task_text": "task", "score": 0.0, "success": False}

    async def step(self, action):
        await self._work("step")
        self._at += {"right": 1, "left": -1}.get(action, 0)
        goal = self._task.options["goal"]
        won, lost = self._at == goal, self._at < 0
        info = {"score": 100.0 * self._at / goal, "success": won, "lenient_success": self._at > 0}
        return StepResult(Observation(f"at {max(self._at, 0)}"), 1.0, won or lost, False, info)

    async def _work(self, call):
        await asyncio.sleep(self._rng.random() * 0.002)
        await self._pool.trouble(self._task, call)


class ScriptedPool:
    """Slots of `CorridorEnv`. `failures`: (task name, call) -> how often it fails."""

    def __init__(self, slots, failures=None, hang_s=0.0):
        self.slots, self.hang_s = slots, hang_s
        self.failures = dict(failures or {})
        self.busy = self.most_busy = 0
        self.started = []
        self.ahead = []
        self._free = asyncio.Semaphore(slots)

    @asynccontextmanager
    async def acquire(self, task=None):
        async with self._free:
            self.busy += 1
            self.most_busy = max(self.busy, self.most_busy)
            try:
                yield CorridorEnv(self)
            finally:
                self.busy -= 1

    def load_ahead(self, tasks):
        self.ahead += tasks

    def describe_waiting(self, longer_than_s):
        return [f"slot 0: step for {longer_than_s:.2f} s"] if self.busy else []

    async def trouble(self, task, call):
        if self.hang_s and call == "step":
            await asyncio.sleep(self.hang_s)
        if self.failures.get((task.name, call), 0) > 0:
            self.failures[task.name, call] -= 1
            raise EnvWorkerError(f"slot died in {task.name}")


class SeededPolicy:
    """Answers with a word drawn by the request's seed; `words` weights the draw."""

    def __init__(self, words=("right", "right", "left")):
        self._ids = [WORDS.index(word) for word in words]
        self.requests, self.released = [], []

    async def generate(self, prompt_ids, sampling, *, trajectory_id):
        self.requests.append((trajectory_id, tuple(prompt_ids), sampling))
        rng = random.Random(sampling.seed)
        await asyncio.sleep(random.random() * 0.002)
        ids = (rng.choice(self._ids), WORDS.index("</s>"))
        return Generation(ids, (-rng.random(), -0.5), "stop", weight_version=7)

    def release(self, trajectory_id):
        self.released.append(trajectory_id)


def make_episodes(tasks, group_size=1):
    return [
        Episode(task, f"g{i}", f"g{i}/{member}")
        for i, task in enumerate(tasks)
        for member in range(group_size)
    ]


def goals(*lengths):
    return [Task(f"goal{n}", {"goal": n}) for n in lengths]


def make_config(kind="trajectory", **fields):
    defaults = {
        "max_steps": 6,
        "context": ContextConfig(kind=kind, history_length=2),
        "reward": RewardConfig(success=10.0),
        "pool": PoolConfig(stall_warning_s=60.0),
    }
    return EnvConfig(**(defaults | fields))


def collect(tokenizer, episodes, *, policy=None, pool=None, config=None, budget=100, seed=0):
    """Run a rollout; returns its trajectories in the order of `episodes`."""

    async def run():
        nonlocal pool
        pool = pool() if callable(pool) else ScriptedPool(4)
        collector = TrajectoryCollector(
            pool, Prompts(), ChatTemplate(tokenizer), config or make_config(), budget
        )
        return await collector.collect_all(policy or SeededPolicy(), episodes, SAMPLING, seed)

    return asyncio.run(run())


def signature(trajectory):
    """Everything about a trajectory except how long it took."""
    turns = [
        (
            turn.prompt_ids.tolist(),
            turn.response_ids.tolist(),
            turn.log_probs.tolist(),
            turn.action,
            turn.observation,
            turn.reward,
        )
        for turn in trajectory.turns
    ]
    return (trajectory.episode, trajectory.reason, trajectory.score, trajectory.success, turns)


def test_a_won_episode_turn_by_turn(tokenizer):
    policy = SeededPolicy(["right"])
    [won] = collect(tokenizer, make_episodes(goals(2)), policy=policy)
    assert (won.reason, won.success, won.score, won.episode_reward) == ("success", True, 100, 10)
    assert [turn.action.text for turn in won.turns] == ["right", "right"]
    assert [turn.observation for turn in won.turns] == ["at 1", "at 2"]
    assert [turn.reward for turn in won.turns] == [0.0, 10.0]
    assert [turn.weight_version for turn in won.turns] == [7, 7]
    assert tokenizer.decode(won.turns[0].prompt_ids) == "task at 0"
    assert tokenizer.decode(won.turns[1].prompt_ids) == "task at 0 right </s> at 1"
    assert won.turns[0].log_probs[1] == np.float32(-0.5)
    assert set(won.timing_s) == {"reset", "env", "generate"}
    assert won.info["lenient_success"] is True


def test_prompts_grow_by_response_and_observation(tokenizer):
    for trajectory in collect(tokenizer, make_episodes(goals(3, 4), group_size=4)):
        for earlier, later in zip(trajectory.turns, trajectory.turns[1:], strict=False):
            seen = [*earlier.prompt_ids, *earlier.response_ids]
            assert later.prompt_ids[: len(seen)].tolist() == seen


def test_turn_context_shows_the_last_turns_only(tokenizer):
    policy = SeededPolicy(["right"])
    [won] = collect(tokenizer, make_episodes(goals(4)), policy=policy, config=make_config("turn"))
    assert [tokenizer.decode(turn.prompt_ids) for turn in won.turns] == [
        "task at 0",
        "task right at 1",
        "task right right at 2",
        "task right right at 3",  # history_length 2
    ]


def test_how_episodes_end(tokenizer):
    def reason(goal, words, **kwargs):
        policy = SeededPolicy(words)
        return collect(tokenizer, make_episodes(goals(goal)), policy=policy, **kwargs)[0]

    assert reason(9, ["left"]).reason == "failure"
    truncated = reason(9, ["right"])
    assert (truncated.reason, truncated.num_turns, truncated.success) == ("truncated", 6, False)
    assert truncated.episode_reward == 0
    overlong = reason(9, ["right"], budget=2)  # the first prompt has 3 tokens
    assert (overlong.reason, overlong.turns) == ("overlong", [])


def test_turn_context_drops_history_before_it_gives_up(tokenizer):
    policy = SeededPolicy(["right"])
    config = make_config("turn")
    [won] = collect(tokenizer, make_episodes(goals(4)), policy=policy, config=config, budget=4)
    assert [turn.dropped_turns for turn in won.turns] == [0, 0, 1, 1]
    [overlong] = collect(tokenizer, make_episodes(goals(4)), policy=policy, config=config, budget=2)
    assert overlong.reason == "overlong"


@pytest.mark.parametrize("kind", ["turn", "trajectory"])
def test_one_slot_and_four_slots_give_equal_trajectories(tokenizer, kind):
    episodes = make_episodes(goals(2, 3, 4, 2), group_size=3)
    config = make_config(kind)
    runs = [
        collect(tokenizer, episodes, pool=lambda n=n: ScriptedPool(n), config=config, seed=5)
        for n in (1, 4)
    ]
    assert [signature(t) for t in runs[0]] == [signature(t) for t in runs[1]]
    assert len({str(signature(t)[4]) for t in runs[0]}) > 3  # the members differ


def test_the_seed_changes_the_rollout(tokenizer):
    episodes = make_episodes(goals(3), group_size=6)
    first, second = (collect(tokenizer, episodes, seed=seed) for seed in (0, 1))
    assert [signature(t) for t in first] != [signature(t) for t in second]


def test_request_seeds_differ_by_seed_task_member_and_turn():
    task, other = goals(2, 3)
    seeds = {
        request_seed(0, Episode(task, "g", "g/0"), 0),
        request_seed(1, Episode(task, "g", "g/0"), 0),
        request_seed(0, Episode(other, "g", "g/0"), 0),
        request_seed(0, Episode(task, "g", "g/1"), 0),
        request_seed(0, Episode(task, "g", "g/0"), 1),
    }
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert request_seed(0, Episode(task, "g", "g/0"), 0) in seeds  # stable


def test_slots_bound_the_episodes_in_flight_and_finished_ones_generate_nothing(tokenizer):
    policy, pools = SeededPolicy(), []

    def pool():
        pools.append(ScriptedPool(3))
        return pools[0]

    trajectories = collect(
        tokenizer, make_episodes(goals(2, 3, 4), group_size=4), policy=policy, pool=pool
    )
    assert (pools[0].most_busy, pools[0].busy) == (3, 0)
    assert len(policy.requests) == sum(t.num_turns for t in trajectories)
    assert sorted(policy.released) == sorted(t.episode.traj_uid for t in trajectories)
    assert {sampling.max_tokens for _, _, sampling in policy.requests} == {3}


def test_an_environment_that_fails_once_costs_nothing_but_time(tokenizer):
    episodes = make_episodes(goals(2, 3))
    healthy = collect(tokenizer, episodes)
    hurt = collect(tokenizer, episodes, pool=lambda: ScriptedPool(2, {("goal3", "step"): 1}))
    assert [signature(t) for t in hurt] == [signature(t) for t in healthy]


@pytest.mark.parametrize("call", ["reset", "step"])
def test_an_environment_that_fails_twice_loses_only_its_own_episode(tokenizer, call, caplog):
    episodes = make_episodes(goals(2, 3))
    healthy = collect(tokenizer, episodes)
    policy = SeededPolicy()
    other, lost = collect(
        tokenizer,
        episodes,
        policy=policy,
        pool=lambda: ScriptedPool(2, {("goal3", call): 2}),
    )
    assert signature(other) == signature(healthy[0])
    assert (lost.reason, lost.turns, lost.success) == ("env_error", [], False)
    assert lost.info["errors"] == ["slot died in goal3"] * 2
    assert policy.released.count("g1/0") == 2  # once an attempt
    assert "episode g1/0 lost its environment: slot died in goal3" in caplog.text


class LatePolicy(SeededPolicy):
    """Never answers some trajectories from their third turn on."""

    def __init__(self, late):
        super().__init__(["right"])
        self._late, self._turns = late, Counter()

    async def generate(self, prompt_ids, sampling, *, trajectory_id):
        self._turns[trajectory_id] += 1
        if trajectory_id in self._late and self._turns[trajectory_id] == 3:
            raise TimeoutError("the engine did not answer within 9 s")
        return await super().generate(prompt_ids, sampling, trajectory_id=trajectory_id)


def test_a_request_past_its_limit_ends_its_own_episode_only(tokenizer, caplog):
    episodes = make_episodes(goals(4), group_size=2)
    healthy = collect(tokenizer, episodes, policy=SeededPolicy(["right"]))
    policy = LatePolicy(["g0/0"])
    late, other = collect(tokenizer, episodes, policy=policy)
    assert (late.reason, late.success, late.info["timed_out"]) == ("truncated", False, True)
    assert [turn.observation for turn in late.turns] == ["at 1", "at 2"]
    assert late.score == 50  # of the last turn that was played
    assert signature(late)[4] == signature(healthy[0])[4][:2]
    assert signature(other) == signature(healthy[1])
    assert other.info["timed_out"] is False
    assert sorted(policy.released) == ["g0/0", "g0/1"]
    assert "episode g0/0 is cut short: the engine did not answer within 9 s" in caplog.text
    metrics = episode_metrics([late, other])
    assert (metrics["episode/timed_out"], metrics["episode/truncated"]) == (1, 1)
    assert trajectory_record(late)["timed_out"] is True


def test_responses_cut_by_length_are_counted(tokenizer):
    class WordyPolicy(SeededPolicy):
        async def generate(self, prompt_ids, sampling, *, trajectory_id):
            generation = await super().generate(prompt_ids, sampling, trajectory_id=trajectory_id)
            is_first = len(prompt_ids) == 3
            return replace(generation, finish_reason="length" if is_first else "stop")

    [won] = collect(tokenizer, make_episodes(goals(4)), policy=WordyPolicy(["right"]))
    assert [turn.finish_reason for turn in won.turns] == ["length", "stop", "stop", "stop"]
    assert episode_metrics([won])["episode/cut_responses"] == 0.25
    record = trajectory_record(won)
    assert [turn["finish_reason"] for turn in record["turns"]][:2] == ["length", "stop"]


def test_an_engine_error_ends_the_rollout(tokenizer):
    class BrokenPolicy(SeededPolicy):
        async def generate(self, prompt_ids, sampling, *, trajectory_id):
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        collect(tokenizer, make_episodes(goals(2, 3)), policy=BrokenPolicy())


def test_an_engine_that_loses_tokens_or_log_probs_is_caught(tokenizer):
    class ShortPolicy(SeededPolicy):
        async def generate(self, prompt_ids, sampling, *, trajectory_id):
            return self.answer

    policy = ShortPolicy()
    for ids, log_probs in [((), ()), ((3,), ())]:
        policy.answer = Generation(ids, log_probs, "stop", weight_version=7)
        with pytest.raises(RuntimeError, match=f"{len(ids)} tokens and 0 log-probs for g0/0"):
            collect(tokenizer, make_episodes(goals(2)), policy=policy)


def test_closing_the_stream_frees_every_slot(tokenizer):
    async def run():
        pool = ScriptedPool(2)
        collector = TrajectoryCollector(
            pool, Prompts(), ChatTemplate(tokenizer), make_config(), 100
        )
        stream = collector.collect(SeededPolicy(), make_episodes(goals(2), 8), SAMPLING, 0)
        await anext(stream)
        await stream.aclose()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        return pool.busy, others

    assert asyncio.run(run()) == (0, set())


def test_trajectories_arrive_as_they_finish(tokenizer):
    async def run():
        collector = TrajectoryCollector(
            ScriptedPool(2), Prompts(), ChatTemplate(tokenizer), make_config(max_steps=40), 1000
        )
        episodes = make_episodes(goals(30, 1))
        policy = SeededPolicy(["right"])
        return [t.num_turns async for t in collector.collect(policy, episodes, SAMPLING, 0)]

    assert asyncio.run(run()) == [1, 30]


def test_a_stalled_rollout_names_what_it_waits_for(tokenizer, caplog):
    config = make_config(pool=PoolConfig(stall_warning_s=0.05))
    with caplog.at_level(logging.WARNING):
        collect(
            tokenizer,
            make_episodes(goals(1)),
            policy=SeededPolicy(["right"]),
            pool=lambda: ScriptedPool(1, hang_s=0.2),
            config=config,
        )
    assert "no progress" in caplog.text
    assert "slot 0: step" in caplog.text


def test_a_slow_engine_is_named_too(tokenizer, caplog):
    class SlowPolicy(SeededPolicy):
        async def generate(self, prompt_ids, sampling, *, trajectory_id):
            await asyncio.sleep(0.2)
            return await super().generate(prompt_ids, sampling, trajectory_id=trajectory_id)

    config = make_config(pool=PoolConfig(stall_warning_s=0.05))
    with caplog.at_level(logging.WARNING):
        collect(tokenizer, make_episodes(goals(1)), policy=SlowPolicy(["right"]), config=config)
    assert "1 episodes wait for the engine" in caplog.text


def test_a_healthy_rollout_warns_of_nothing(tokenizer, caplog):
    collect(tokenizer, make_episodes(goals(2, 3)))
    assert caplog.text == ""


def test_a_group_of_different_tasks_is_refused(tokenizer):
    first, second = goals(2, 3)
    mixed = [Episode(first, "g", "a"), Episode(second, "g", "b")]
    with pytest.raises(ValueError, match="group 'g' mixes the tasks"):
        collect(tokenizer, mixed)


def test_a_repeated_traj_uid_is_refused(tokenizer):
    [task] = goals(2)
    with pytest.raises(ValueError, match="traj_uid 'a' occurs 2 times"):
        collect(tokenizer, [Episode(task, "g", "a"), Episode(task, "g", "a")])


def test_no_episodes_give_no_trajectories(tokenizer):
    assert collect(tokenizer, []) == []


def test_groups_stay_together_and_task_types_take_turns():
    boil, freeze = Task("boil", {"v": 0}), Task("freeze", {"v": 0})
    tasks = [boil, Task("boil", {"v": 1}), Task("boil", {"v": 2}), freeze]
    order = starting_order(make_episodes(tasks, group_size=2))
    assert [e.traj_uid for e in order] == [
        "g0/0", "g0/1", "g3/0", "g3/1", "g1/0", "g1/1", "g2/0", "g2/1",
    ]  # fmt: skip


def test_tasks_are_loaded_ahead_in_the_order_in_which_they_start(tokenizer):
    pool = ScriptedPool(2)
    collector = TrajectoryCollector(pool, Prompts(), ChatTemplate(tokenizer), make_config(), 100)
    episodes = make_episodes(goals(2, 3, 2), group_size=2)
    collector.load_ahead(episodes)
    assert pool.ahead == [episode.task for episode in starting_order(episodes)]
