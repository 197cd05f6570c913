"""The pool, with a scripted environment in real processes: speed, failures, no orphans."""

import asyncio
import importlib
import os
import re
import signal
import socket
import subprocess
import sys
from multiprocessing.connection import Connection

import psutil
import pytest

from agent_system.config import PoolConfig
from agent_system.environments.pool import EnvPool, EnvPoolError, EnvWorkerError
from agent_system.environments.registry import get_env_package
from agent_system.types import Task

from ...waiting import running_python, until, wait_until

ENV_NAME = "scripted_env:PACKAGE"
MODULE = '''
import os, subprocess, sys, time
from dataclasses import dataclass
from agent_system.environments.registry import EnvPackage

@dataclass(frozen=True)
class Options:
    boot: str = "ok"

class Unspeakable(Exception):
    def __str__(self): raise OSError("the simulator that knows is gone")

class ScriptedEnv:
    """Its actions are small programs."""

    def reset(self, *, seed, options):
        if options["task"]["name"] == "broken":
            raise ValueError("no such task")
        self.task, self.steps = options["task"], 0
        self.resets = getattr(self, "resets", 0) + 1
        info = {"admissible_actions": ["a", "b"], "score": 0, "success": False}
        return f"start {self.task['name']} {seed}", info

    def step(self, action):
        self.steps += 1
        verb, _, argument = action.partition(" ")
        text = getattr(self, verb)(argument)
        return text, 1.0, verb == "win", False, {"score": self.steps, "success": verb == "win"}

    def echo(self, text): return text
    def win(self, text): return "won"
    def lambda_(self, text): return lambda: text
    def count_resets(self, text): return f"{self.resets} of {self.task['name']}"
    def sleep(self, text): time.sleep(float(text)); return f"slept {text}"
    def die(self, text): print("last words", flush=True); os._exit(3)
    def hostile(self, text): return "half \\ud800, \\x1b[2J" + "x" * int(text)
    def number(self, text): return float(text)
    def fail_in_colours(self, text): raise ValueError("\\x1b[31mred\\nFORGED LINE")
    def fail(self, text): raise RuntimeError("the simulator says no")
    def grow(self, text): self.held = b"x" * (int(text) * 2**20); return "grown"
    def fat_child(self, text):
        code = f"held = b'x' * ({text.split()[0]} * 2**20); print(flush=True); input()"
        command, own = [sys.executable, "-c", code], text.endswith("own group")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.fat = subprocess.Popen(command, start_new_session=own, **pipes)
        self.fat.stdout.readline()
        return str(self.fat.pid)
    def fail_badly(self, text): raise Unspeakable()
    def child(self, text): return str(subprocess.Popen(["sleep", "1000"]).pid)
    def modules(self, text): return " ".join(sorted({m.partition(".")[0] for m in sys.modules}))
    def close(self): pass

def make_env(options):
    if options.boot == "fail":
        raise RuntimeError("no simulator here")
    if options.boot == "hang":
        time.sleep(1000)
    return ScriptedEnv()

PACKAGE = EnvPackage("scripted", "scripted_env:make_env", Options, None, None, lambda: None)
'''


@pytest.fixture
def make_pool(tmp_path, monkeypatch):
    """Builds pools of the scripted environment and closes them at the end."""
    (tmp_path / "scripted_env.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "scripted_env", raising=False)
    pools = []

    def make(slots=1, options=None, **config):
        config = PoolConfig(slots_per_worker=slots, **config)
        pools.append(EnvPool(get_env_package(ENV_NAME).bind(options or {}), config))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def task(name="t", seed=0):
    return Task(name, {}, seed)


async def play(pool, *actions, of=None):
    """The last answer of an episode."""
    of = of or task()
    async with pool.acquire(of) as env:
        result, _ = await env.reset(of)
        for action in actions:
            result = await env.step(action)
        return result


def test_an_episode(make_pool):
    async def episode():
        async with pool.acquire() as env:
            observation, info = await env.reset(task("find", seed=5))
            return observation, info, await env.step("echo hello"), await env.step("win")

    pool = make_pool()
    observation, info, step, last = asyncio.run(episode())
    assert observation.text == "start find 5"
    assert observation.admissible_actions == ("a", "b")
    assert info == {"score": 0, "success": False}
    assert (step.observation.text, step.reward, step.terminated) == ("hello", 1.0, False)
    assert (last.terminated, last.info) == (True, {"score": 2, "success": True})


def test_more_episodes_than_slots_share_them(make_pool):
    async def episode(number):
        nonlocal running, most
        async with pool.acquire() as env:
            running += 1
            most = max(most, running)
            await env.reset(task())
            text = (await env.step(f"echo {number}")).observation.text
            running -= 1
            return text

    async def all_episodes():
        return await asyncio.gather(*(episode(number) for number in range(20)))

    running, most = 0, 0
    pool = make_pool(slots=2)
    assert asyncio.run(all_episodes()) == [str(number) for number in range(20)]
    assert most <= 2
    assert pool.stats().busy == 0


def test_waiting_for_an_environment_leaves_the_loop_free(make_pool):
    async def count_while_sleeping():
        async with pool.acquire() as env:
            await env.reset(task())
            step = asyncio.create_task(env.step("sleep 0.5"))
            ticks = 0
            while not step.done():
                await asyncio.sleep(0.01)
                ticks += 1
            return ticks

    pool = make_pool()
    assert asyncio.run(count_while_sleeping()) >= 10


def test_each_rollout_may_have_an_event_loop_of_its_own(make_pool):
    pool = make_pool()
    for number in range(3):
        assert asyncio.run(play(pool, f"echo {number}")).observation.text == str(number)


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ("die", "its process ended with exit code 3"),
        ("sleep 30", "no answer within 1 s"),
        ("fail", "RuntimeError: the simulator says no"),
        ("lambda_", "[Cc]an't pickle"),
        ("number 1", "the observation is a float; it has to be a text"),
        ("fail_in_colours", r"ValueError: \[31mred FORGED LINE"),
    ],
)
def test_a_failure_costs_its_own_episode_only(make_pool, action, reason):
    async def both():
        broken = asyncio.create_task(play(pool, action, of=task("unlucky")))
        healthy = asyncio.create_task(play(pool, "sleep 0.2", "echo fine", of=task("lucky")))
        with pytest.raises(EnvWorkerError, match=reason) as failure:
            await broken
        assert "unlucky" in str(failure.value)
        assert (await healthy).observation.text == "fine"
        return await asyncio.gather(play(pool, "echo again"), play(pool, "echo again"))

    pool = make_pool(slots=2, step_timeout_s=1.0)
    answers = asyncio.run(both())
    assert [answer.observation.text for answer in answers] == ["again", "again"]
    assert pool.stats().replacements == 1


def test_what_no_text_may_hold_is_replaced_and_what_is_too_long_is_cut(make_pool):
    pool = make_pool(max_text_chars=100)
    short, long = (asyncio.run(play(pool, f"hostile {n}")).observation for n in (0, 10_000_000))
    assert (short.text, short.cleaned) == ("half \ufffd, \ufffd[2J", True)
    assert len(long.text) < 200 and "9999912 characters left out" in long.text
    assert not asyncio.run(play(pool, "echo café")).observation.cleaned


def test_a_hung_environment_is_killed_with_its_children(make_pool):
    async def hang():
        async with pool.acquire() as env:
            await env.reset(task())
            child = int((await env.step("child")).observation.text)
            with pytest.raises(EnvWorkerError):
                await env.step("sleep 30")
            return child

    pool = make_pool(step_timeout_s=0.3)
    child = asyncio.run(hang())
    wait_until(lambda: is_gone(child))


def test_a_failed_slot_stays_failed_for_its_episode(make_pool):
    async def step_again():
        async with pool.acquire() as env:
            await env.reset(task())
            with pytest.raises(EnvWorkerError):
                await env.step("die")
            with pytest.raises(EnvWorkerError, match="exit code 3"):
                await env.step("echo x")

    pool = make_pool()
    asyncio.run(step_again())


def test_the_answer_to_a_cancelled_step_is_not_taken_for_the_next_one(make_pool):
    async def cancel_then_play():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await play_ready(pool, "sleep 0.6")
        return await play(pool, "echo mine")

    async def play_ready(pool, action):
        async with slot_booted.acquire() as env:
            await env.reset(task())
            await env.step(action)

    pool = slot_booted = make_pool()
    asyncio.run(play(pool))
    assert asyncio.run(cancel_then_play()).observation.text == "mine"
    assert pool.stats().replacements == 0


def test_a_task_that_was_loaded_ahead_is_not_loaded_again(make_pool):
    async def resets_of(names):
        episodes = (play(pool, "count_resets", of=task(name)) for name in names)
        return [answer.observation.text for answer in await asyncio.gather(*episodes)]

    pool = make_pool(slots=2)
    asyncio.run(both_slots_play(pool))
    pool.load_ahead([task("c"), task("d"), task("e")])  # no slot is left for "e"
    answers = asyncio.run(resets_of("dce"))
    assert answers[:2] == ["2 of d", "2 of c"] and answers[2].startswith("3 of e")
    assert pool.stats().loaded_ahead == 2


def test_loading_ahead_again_replaces_what_was_loaded(make_pool):
    pool = make_pool()
    asyncio.run(play(pool))
    pool.load_ahead([task("first")])
    pool.load_ahead([task("second")])
    last = asyncio.run(play(pool, "count_resets", of=task("second")))
    assert last.observation.text == "3 of second"


def test_an_episode_of_another_task_takes_a_slot_that_has_loaded_none(make_pool):
    pool = make_pool(slots=2)
    asyncio.run(both_slots_play(pool))
    pool.load_ahead([task("ahead")])
    asyncio.run(play(pool, "echo x", of=task("other")))
    last = asyncio.run(play(pool, "count_resets", of=task("ahead")))
    assert last.observation.text == "2 of ahead"
    assert pool.stats().loaded_ahead == 1


def test_failures_of_loading_ahead_are_those_of_the_episode(make_pool):
    async def lost(name):
        with pytest.raises(EnvWorkerError) as caught:
            await play(pool, of=task(name))
        return str(caught.value)

    pool = make_pool()
    pool.load_ahead([task("early")])  # it boots: nothing is asked of it
    asyncio.run(play(pool))
    assert pool.stats().loaded_ahead == 0

    pool.load_ahead([task("broken")])
    assert "no such task" in asyncio.run(lost("broken"))
    asyncio.run(play(pool))
    os.kill(pool._slots[0].pid, signal.SIGKILL)
    wait_until(lambda: is_gone(pool._slots[0].pid))
    pool.load_ahead([task("late")])
    assert "its process ended" in asyncio.run(lost("late"))
    assert asyncio.run(play(pool, "echo on")).observation.text == "on"
    assert pool.stats().replacements == 2


async def both_slots_play(pool):
    await asyncio.gather(play(pool, "sleep 0.1"), play(pool, "sleep 0.1"))


def test_a_slot_that_always_fails_breaks_the_pool(make_pool):
    async def keep_trying():
        errors = []
        for _ in range(3):
            try:
                await play(pool, of=task("broken"))
            except (EnvWorkerError, EnvPoolError) as error:
                errors.append(error)
        return errors

    pool = make_pool(max_consecutive_replacements=1)
    first, second, third = asyncio.run(keep_trying())
    assert isinstance(first, EnvWorkerError)
    assert isinstance(second, EnvPoolError) and "no such task" in str(second)
    assert isinstance(third, EnvPoolError)


def test_a_finished_episode_forgives_earlier_failures(make_pool):
    async def alternate():
        for _ in range(3):
            with pytest.raises(EnvWorkerError):
                await play(pool, "fail")
            await play(pool, "echo fine")

    pool = make_pool(max_consecutive_replacements=1)
    asyncio.run(alternate())
    assert pool.stats().replacements == 3


@pytest.mark.parametrize(
    ("boot", "reason"), [("fail", "no simulator here"), ("hang", "no answer within")]
)
def test_an_environment_that_does_not_start_breaks_the_pool(make_pool, boot, reason):
    async def two_episodes():
        return await asyncio.gather(play(pool), play(pool), return_exceptions=True)

    pool = make_pool(options={"boot": boot}, max_consecutive_replacements=0, start_timeout_s=1.0)
    errors = asyncio.run(two_episodes())
    assert [type(error) for error in errors] == [EnvPoolError, EnvPoolError]
    assert reason in str(errors[0])


@pytest.mark.parametrize("has_folder", [True, False])
def test_what_went_wrong_is_one_line_and_the_traceback_is_logged(
    make_pool, caplog, tmp_path, has_folder
):
    folder = tmp_path / "logs" if has_folder else None
    pool = make_pool(max_consecutive_replacements=0, log_dir=folder and str(folder))
    with pytest.raises(EnvPoolError) as broken:
        asyncio.run(play(pool, "fail"))
    where = f"; its output is in {folder}/env_slot_000.log" if has_folder else ""
    assert str(broken.value) == (
        "environment slot 0 had to be replaced 1 times without a good episode in between; the last "
        "reason: environment slot 0 failed at step of t[]#0: RuntimeError: the simulator says no"
        + where
    )
    written = (folder / "env_slot_000.log").read_text() if has_folder else caplog.text
    assert "Traceback (most recent call last)" in written
    assert 'raise RuntimeError("the simulator says no")' in written
    assert "Traceback" not in caplog.text or not has_folder


def test_an_error_that_cannot_be_put_in_words_is_still_answered(make_pool):
    with pytest.raises(EnvWorkerError, match=r"Unspeakable: <exception str\(\) failed>$"):
        asyncio.run(play(make_pool(), "fail_badly"))


def test_a_slot_over_its_memory_cap_is_replaced_after_its_episode(make_pool, caplog):
    pool = make_pool(max_memory_mb=200)
    first = pool._slots[0].pid
    assert asyncio.run(play(pool, "grow 300", "echo on")).observation.text == "on"
    assert is_gone(first)
    assert pool.stats().replacements == 1
    (line,) = [record.getMessage() for record in caplog.records]
    found = re.fullmatch(
        r"replacing an environment process: environment slot 0 holds (\d+) MiB after t\[\]#0, "
        r"more than env\.pool\.max_memory_mb=200",
        line,
    )
    assert 300 < int(found[1]) < 400
    asyncio.run(play(pool, "grow 1"))
    assert pool.stats().replacements == 1


@pytest.mark.parametrize(("group", "replacements"), [("same group", 1), ("own group", 0)])
def test_children_count_unless_they_have_a_group_of_their_own(make_pool, group, replacements):
    """Such as a Java process that several slots share: no slot is charged, and it lives on."""
    pool = make_pool(max_memory_mb=200)
    child = int(asyncio.run(play(pool, f"fat_child 300 {group}")).observation.text)
    assert pool.stats().replacements == replacements
    if group == "own group":
        assert not is_gone(child)
        pool.close()  # closes the pipe that it reads
    wait_until(lambda: is_gone(child))


def test_a_cap_that_no_process_can_keep_breaks_the_pool(make_pool):
    async def three_episodes():
        for _ in range(3):
            await play(pool)

    pool = make_pool(max_memory_mb=5, max_consecutive_replacements=2)
    with pytest.raises(EnvPoolError, match=r"replaced 3 times.*MiB after t.*max_memory_mb=5$"):
        asyncio.run(three_episodes())


def test_what_a_slot_waits_for_has_a_name(make_pool):
    async def look():
        async with pool.acquire() as env:
            await env.reset(task("find", seed=3))
            assert pool.describe_waiting(0.0) == []
            step = asyncio.create_task(env.step("sleep 1000"))
            await until(lambda: pool.describe_waiting(0.1))
            described = pool.describe_waiting(0.1), pool.describe_waiting(1000.0)
            step.cancel()
            return described

    pool = make_pool()
    described, none = asyncio.run(look())
    [text] = described
    assert re.fullmatch(r"slot 0: step for \d+ s in find\[\]#3", text)
    assert none == []


def test_output_goes_to_the_log_folder(make_pool, tmp_path):
    pool = make_pool(log_dir=str(tmp_path / "logs"))
    with pytest.raises(EnvWorkerError, match=r"env_slot_000\.log"):
        asyncio.run(play(pool, "die"))
    assert "last words" in (tmp_path / "logs" / "env_slot_000.log").read_text()


def test_a_worker_holds_only_what_its_environment_needs(make_pool):
    pool = make_pool()
    modules = set(asyncio.run(play(pool, "modules")).observation.text.split())
    assert "agent_system" in modules
    assert not modules & {"torch", "ray", "transformers", "verl", "epo", "hydra", "asyncio"}
    assert psutil.Process(pool._slots[0].pid).memory_info().rss < 60 * 2**20


def test_close_ends_every_process_and_may_be_repeated(make_pool):
    async def child_of_slot():
        return int((await play(pool, "child")).observation.text)

    pool = make_pool(slots=2)
    child = asyncio.run(child_of_slot())
    workers = [slot.pid for slot in pool._slots]
    pool.close()
    pool.close()
    wait_until(lambda: all(is_gone(pid) for pid in [child, *workers]))
    with pytest.raises(EnvPoolError, match="closed"):
        asyncio.run(play(pool))


PARENT = """
    import asyncio, sys, time
    from agent_system.config import PoolConfig
    from agent_system.environments.pool import EnvPool
    from agent_system.types import Task
    from scripted_env import PACKAGE

    async def main():
        pool = EnvPool(PACKAGE.bind({}), PoolConfig(slots_per_worker=1))
        async with pool.acquire() as env:
            await env.reset(Task("t", {}))
            child = (await env.step("child")).observation.text
            print(env.pid, child, flush=True)
            await {then}

    asyncio.run(main())
"""


@pytest.mark.parametrize("then", ['env.step("sleep 1000")', "asyncio.sleep(1000)"])
def test_a_killed_parent_leaves_no_process_behind(make_pool, tmp_path, then):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    with running_python(PARENT.replace("{then}", then), env=environment) as parent:
        worker, child = map(int, parent.stdout.readline().split())
        assert not is_gone(worker) and not is_gone(child)
        parent.send_signal(signal.SIGKILL)
    wait_until(lambda: is_gone(worker) and is_gone(child))


def test_a_process_that_notices_by_its_connection_ends_its_children_too(make_pool, tmp_path):
    ours, theirs = socket.socketpair()
    code = (
        "import sys; from agent_system.environments import worker; "
        "worker._die_with_parent = print; sys.exit(worker.main())"  # the watching thread sleeps
    )
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
            start_new_session=True,
        )
    with process, Connection(ours.detach()) as connection:
        options = importlib.import_module("scripted_env").Options()
        connection.send(("scripted_env:make_env", options))
        connection.send((1, "reset", {"seed": 0, "options": {"task": {"name": "t"}}}))
        connection.send((2, "step", {"action": "child"}))
        *_, (_, _, (child, *_)) = [connection.recv() for _ in range(3)]
        assert not is_gone(int(child))
        connection.close()
        wait_until(lambda: is_gone(int(child)))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("alfworld/AlfredTWEnv", {"data_dir": 3}, "data_dir .*has to be of type str"),
        ("foo", {}, "unknown environment 'foo'; available: sciworld/SciWorldEnv"),
        ("no_such_module:PACKAGE", {}, "cannot import 'no_such_module:PACKAGE'"),
        ("sciworld/SciWorldEnv", {"jvm_heap": 3}, "unknown key 'jvm_heap'.*jvm_heap_mb"),
        ("sciworld/SciWorldEnv", {"jvm_heap_mb": "3"}, "has to be of type int"),
        ("sciworld/SciWorldEnv", {"jvm_heap_mb": True}, "has to be of type int"),
        ("sciworld/SciWorldEnv", {"jvm_heap_mb": 8}, "jvm_heap_mb=8; the simulator needs 64"),
        ("sciworld/SciWorldEnv", {"simplification": "easy,hard"}, "'hard'; available: easy, "),
        ("sciworld/SciWorldEnv", {"observation": "tiny"}, "'tiny'; available: full, compact"),
    ],
)
def test_bad_settings_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        get_env_package(name).bind(options)


def is_gone(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
