"""The pieces of benchmarks/rollout.py: the simulated engine keeps its latencies, and so on."""

import asyncio
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from agent_system.config import ActionFormatConfig, EnvConfig
from agent_system.multi_turn_rollout import TrajectoryCollector
from agent_system.multi_turn_rollout.conversation import make_context
from agent_system.types import Episode, Observation, SamplingParams, StepResult, Task
from verl.workers.rollout.base import Generation

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
STEP_MS, PREFILL = 4.0, 2000.0  # one request alone; prompt tokens a second


@pytest.fixture(scope="module")
def parts():
    """The benchmark's modules, which are not installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        from rollout_parts import lockstep, replay, report, scripted, simulated, step

        yield SimpleNamespace(
            lockstep=lockstep,
            replay=replay,
            report=report,
            scripted=scripted,
            simulated=simulated,
            step=step,
        )


@pytest.fixture
def latencies(parts):
    return parts.simulated.Latencies((1, 3), (STEP_MS, 2 * STEP_MS), PREFILL, "a test")


def test_steps_slow_down_with_the_requests_that_share_them(parts, latencies):
    assert latencies.step_seconds(1) == pytest.approx(0.004)
    assert latencies.step_seconds(2) == pytest.approx(0.006)  # halfway from 4 to 8 ms
    assert latencies.step_seconds(3) == pytest.approx(0.008)
    assert latencies.step_seconds(6) == pytest.approx(0.016)  # beyond the table: 8 ms * 6 / 3


def test_latencies_survive_their_file(latencies, tmp_path):
    latencies.write(tmp_path / "latencies.json")
    assert type(latencies).read(tmp_path / "latencies.json") == latencies


def test_clock_counts_steps_at_the_pace_of_the_running_requests(parts, latencies):
    clock = parts.simulated.DecodeClock(latencies)
    clock.read(10.0, running=0)
    assert clock.read(10.04, running=1) == pytest.approx(10)  # 40 ms / 4 ms
    assert clock.read(10.08, running=3) == pytest.approx(15)  # and 40 ms / 8 ms
    assert clock.when(20, running=1) == pytest.approx(10.08 + 5 * 0.004)


def test_clock_stands_while_prompts_are_prefilled(parts, latencies):
    clock = parts.simulated.DecodeClock(latencies)
    clock.read(1.0, running=1)
    clock.steps = 0.0
    clock.prefill(1.0, tokens=100)  # 100 / 2000 = 50 ms
    clock.prefill(1.0, tokens=100)  # one after the other
    assert clock.when(5, running=1) == pytest.approx(1.1 + 5 * 0.004)
    assert clock.read(1.1, running=1) == 0
    assert clock.read(1.12, running=1) == pytest.approx(5)


def make_engine(parts, latencies, places=8):
    return parts.simulated.SimulatedEngine(latencies, answer_ids=[7, 8], max_num_seqs=places)


def timed(parts, engine, requests, prompt=20, tokens=50):
    """Seconds and generations of equal requests at once; equal seeds give equal lengths."""

    async def main():
        started = time.perf_counter()
        generations = await asyncio.gather(
            *(
                engine.generate(
                    [1] * prompt, SamplingParams(max_tokens=tokens, seed=0), trajectory_id=str(i)
                )
                for i in range(requests)
            )
        )
        return time.perf_counter() - started, generations

    return asyncio.run(main())


def test_engine_takes_the_time_of_prefill_and_decoding(parts, latencies):
    seconds, (generation,) = timed(parts, make_engine(parts, latencies), 1)
    length = len(generation.token_ids)
    assert 25 <= length <= 50
    assert len(generation.log_probs) == length
    assert generation.token_ids[-2:] == (7, 8)
    # 20 tokens / 2000 a second = 10 ms, then a step of 4 ms a token
    wanted = 0.01 + length * 0.004
    assert wanted <= seconds < 1.5 * wanted + 0.1


def test_requests_share_the_decoding_steps(parts, latencies):
    seconds, generations = timed(parts, make_engine(parts, latencies), 3)
    wanted = 3 * 0.01 + len(generations[0].token_ids) * 0.008
    assert wanted <= seconds < 1.5 * wanted + 0.1


def test_requests_beyond_the_places_wait(parts, latencies):
    seconds, generations = timed(parts, make_engine(parts, latencies, places=1), 2)
    assert seconds >= 2 * (0.01 + len(generations[0].token_ids) * 0.004)


def test_engine_knows_a_trajectorys_last_tokens(parts, latencies):
    engine = make_engine(parts, latencies)

    async def main():
        settings = SamplingParams(max_tokens=4, seed=0)
        first = await engine.generate([1] * 30, settings, trajectory_id="a")
        grown = [1] * (30 + len(first.token_ids) + 5)
        await engine.generate(grown, settings, trajectory_id="a")
        engine.release("a")
        await engine.generate([1] * 10, settings, trajectory_id="a")
        return len(first.token_ids)

    length = asyncio.run(main())
    stats = engine.stats()
    # 30, then 5 new ones and the last sampled token, then 10 anew
    assert stats["prefilled_tokens"] == 30 + 6 + 10
    assert stats["cache_hit_tokens"] == 30 + length - 1
    assert stats["generated_tokens"] >= 3 * 2


def test_cancelled_request_does_not_hold_up_the_others(parts, latencies):
    engine = make_engine(parts, latencies)

    async def main():
        settings = SamplingParams(max_tokens=20, seed=0)
        lost = asyncio.create_task(engine.generate([1] * 9, settings, trajectory_id="lost"))
        kept = asyncio.create_task(engine.generate([1] * 9, settings, trajectory_id="kept"))
        await asyncio.sleep(0.01)
        lost.cancel()
        return await asyncio.wait_for(kept, 5)

    assert isinstance(asyncio.run(main()), Generation)


class CharacterChat:
    """Characters as tokens."""

    opens_reasoning = False

    def opening(self, system, user):
        return self.encode(f"<u>{user}<a>")

    def continuation(self, response_ids, user):
        return self.encode(f"<u>{user}<a>")

    def without_reasoning(self, prompt_ids, response_ids):
        return np.concatenate([prompt_ids, response_ids])

    def encode(self, text):
        return np.asarray([ord(character) for character in text], np.int32)

    def decode(self, ids):
        return "".join(map(chr, ids.tolist()))

    def count(self, text):
        return len(text)

    def has_markers(self, text):
        return False


@pytest.fixture
def games(parts):
    """An engine, slots and episodes of 3, 5 and 4 turns."""
    options = parts.scripted.ScriptedOptions(reset_ms=1, step_ms=1)
    engine = parts.simulated.SimulatedEngine(
        parts.simulated.Latencies((1,), (0.01,), 1e6, "a test"),
        answer_ids=CharacterChat().encode(parts.simulated.ANSWER).tolist(),
        max_num_seqs=4,
    )
    return SimpleNamespace(
        engine=engine,
        pool=parts.scripted.ScriptedPool(options, slots=3),
        prompts=parts.scripted.prompts(options, ActionFormatConfig()),
        episodes=[Episode(Task("walk", {"turns": n}), f"g{n}", f"g{n}/0") for n in (3, 5, 4)],
    )


SAMPLING = SamplingParams(max_tokens=80)


def play_ours(games):
    collector = TrajectoryCollector(
        games.pool, games.prompts, CharacterChat(), EnvConfig(), max_prompt_length=10_000
    )
    return asyncio.run(collector.collect_all(games.engine, games.episodes, SAMPLING, seed=0))


def test_scripted_pool_plays_whole_episodes(games):
    played = play_ours(games)
    assert [trajectory.num_turns for trajectory in played] == [3, 5, 4]
    assert all(trajectory.success for trajectory in played)
    assert {turn.action.text for t in played for turn in t.turns} == {"look around"}
    assert games.pool.stats().busy == 0


def test_lock_step_plays_the_same_episodes_with_more_work(parts, games):
    ours = [trajectory.turns for trajectory in play_ours(games)]
    before = games.engine.stats()["generated_tokens"]
    chat, entropy_rows = CharacterChat(), []
    baseline = parts.lockstep.LockStep(
        games.pool,
        chat,
        make_context(EnvConfig().context, chat, games.prompts, 10_000),
        games.prompts,
        entropy_rows.append,
    )
    theirs = asyncio.run(baseline.play(games.engine, games.episodes, SAMPLING, seed=0))
    assert [len(turns) for turns in theirs] == [3, 5, 4]
    assert parts.lockstep.equal_turns(theirs, ours) == 12
    # every turn until the longest is over has a row of all 3 episodes: 5 turns
    assert [len(rows) for rows in entropy_rows] == [3] * 5
    useful = sum(len(turn.response_ids) for turns in ours for turn in turns)
    generated = games.engine.stats()["generated_tokens"] - before
    assert baseline.wasted_tokens == generated - useful
    assert baseline.wasted_tokens > 0  # 3 * 5 responses for 12 turns


class WonEnv:
    """Every step wins."""

    def __init__(self):
        self.actions = []

    async def reset(self, task):
        return Observation("start"), {}

    async def step(self, action):
        self.actions.append(action)
        return StepResult(Observation("-"), 0.0, True, False, {"success": True})


def test_scripted_slot_plays_its_whole_script(parts):
    task, env = Task("boil", {}), WonEnv()
    slot = parts.replay.ScriptedSlot(env, {task.key: ["go", "look", "wait"]})

    async def main():
        await slot.reset(task)
        return [await slot.step("ignored") for _ in range(3)]

    results = asyncio.run(main())
    assert env.actions == ["go", "look", "wait"]
    assert [result.truncated for result in results] == [False, False, True]
    assert [result.info["success"] for result in results] == [False, False, True]
    assert not any(result.terminated for result in results)


def test_parts_of_a_step_add_up_to_the_whole(parts):
    metrics = {
        "timing_s/step": 20.0,
        "timing_s/collect": 12.0,
        "timing_s/episode/generate": 6.0,
        "timing_s/episode/env": 1.5,
        "timing_s/episode/reset": 0.5,
        "timing_s/old_log_prob": 2.0,
        "timing_s/ref": 1.0,
        "timing_s/update_actor": 3.0,
        "timing_s/sync_weights": 1.0,
        "timing_s/live_check": 0.25,
    }
    # of 8 s that an episode waits 6 are for the engine: 12 * 6/8 = 9; environment 12 * 2/8 = 3
    assert parts.step.parts(metrics) == pytest.approx(
        {
            "generate": 9.0,
            "environment": 3.0,
            "log-probs": 3.0,
            "update": 3.0,
            "weight sync": 1.0,
            "live check": 0.25,
            "other": 0.75,  # 20 - 19.25
            "step": 20.0,
        }
    )


def test_tables_are_markdown(parts):
    table = parts.report.markdown(["a", "b"], [[1234, 0.12345], ["x", 123.4]])
    assert table == "| a | b |\n| --- | --- |\n| 1,234 | 0.123 |\n| x | 123 |"
