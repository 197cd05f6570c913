"""The rollout worker's settings, and the event loop behind its generator."""

import asyncio
import logging
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from agent_system.adapters.rollout_worker import RolloutWorker
from agent_system.adapters.setup import check_environment, load_tasks
from agent_system.config import (
    ActionFormatConfig,
    ContextConfig,
    EnvConfig,
    PoolConfig,
    TaskSetConfig,
)
from agent_system.environments.pool import EnvPoolError
from verl.config.algorithm import DataConfig
from verl.config.plan import make_plan
from verl.config.root import PPOConfig
from verl.config.trainer import RunConfig
from verl.utils.errors import UserError
from verl.utils.loop_thread import LoopThread
from verl.workers.rollout.supervised import EngineGaveUpError

from ...families import byte_tokenizer


def make_config(**env):
    config = PPOConfig(env=EnvConfig(**env), epo=None)
    config.data = DataConfig(max_prompt_length=100, max_response_length=20)
    return config


@pytest.fixture
def clean_logging():
    """What a test sets up is taken down again."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    for handler in set(root.handlers) - set(before):
        root.removeHandler(handler)
        handler.close()
    root.handlers[:] = before
    root.setLevel(level)
    logging.captureWarnings(False)


@pytest.fixture
def loop():
    thread = LoopThread("test-loop")
    yield thread
    thread.close()


async def count(cleaned, limit=3):
    try:
        for number in range(limit):
            await asyncio.sleep(0)
            yield number
    finally:
        cleaned.append(True)


def test_a_stream_is_an_ordinary_generator(loop):
    cleaned = []
    assert list(loop.stream(count(cleaned))) == [0, 1, 2]
    assert cleaned == [True]


def test_a_stream_that_is_left_early_cleans_up(loop):
    cleaned = []
    stream = loop.stream(count(cleaned))
    assert next(stream) == 0
    assert cleaned == []
    stream.close()
    assert cleaned == [True]


def test_an_error_in_a_stream_reaches_the_caller(loop):
    async def failing():
        yield 1
        raise RuntimeError("engine died")

    stream = loop.stream(failing())
    assert next(stream) == 1
    with pytest.raises(RuntimeError, match="engine died"):
        next(stream)


def test_closing_cancels_what_runs_and_ends_the_thread():
    loop = LoopThread("short-lived")
    events = []

    async def forever():
        try:
            await asyncio.sleep(60)
        finally:
            events.append("cleaned up")

    async def start():
        events.append(asyncio.create_task(forever()))
        await asyncio.sleep(0)

    loop.run(start())
    loop.close()
    loop.close()
    task, outcome = events
    assert task.cancelled()
    assert outcome == "cleaned up"
    assert "short-lived" not in [thread.name for thread in threading.enumerate()]


def test_task_lists_by_name():
    config = make_config(
        train=TaskSetConfig(name="L0_train", tasks=["boil"], max_tasks=5),
        val={"hard": TaskSetConfig(name="L1_test", tasks=["freeze"], max_tasks=3)},
    )
    assert [task.name for task in load_tasks(config, "train")] == ["boil"] * 5
    assert [task.name for task in load_tasks(config, "hard")] == ["freeze"] * 3
    with pytest.raises(UserError, match="unknown task list 'l9'; available: hard, train"):
        load_tasks(config, "l9")


TALK = "{% for m in messages %}{{ m.content }}</s>{% endfor %}"
DEAF = "{{ raise_exception('no ' + messages[0].role) }}"
FORGETFUL = "{{ messages[-1].content }}"
COUNTING = "{% for m in messages %}{{ messages | length }}{{ m.content }}</s>{% endfor %}"


def config_with(folder, tokenizer, **env):
    """A run that is fine but perhaps for its tokenizer."""
    tokenizer.save_pretrained(folder)
    config = make_config(train=TaskSetConfig(max_tasks=2), val={}, **env)
    config.actor_rollout_ref.model.path = str(folder)
    return config


def config_with_template(folder, template, **env):
    return config_with(folder, byte_tokenizer(template, ["</s>"], "</s>"), **env)


@pytest.mark.parametrize(("template", "kind"), [(TALK, "trajectory"), (FORGETFUL, "turn")])
def test_check_environment_accepts_what_runs(tmp_path, template, kind):
    config = config_with_template(tmp_path, template, context=ContextConfig(kind=kind))
    assert check_environment(config) is None


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "no chat template"),
        (DEAF, r"refuses a conversation of user \(no user\)"),
        (FORGETFUL, "drops or rewrites earlier replies; set env.context.kind=turn"),
        (COUNTING, "rewrites earlier messages when a conversation goes on"),
    ],
)
def test_check_environment_refuses_a_template_that_cannot_play(tmp_path, template, message):
    with pytest.raises(UserError, match=message):
        check_environment(config_with_template(tmp_path, template))


def test_a_stop_string_that_cuts_the_command_is_refused(tmp_path):
    for stop in (["</think>"], ["<action>"]):
        config = config_with_template(tmp_path, TALK, action_format=ActionFormatConfig(stop=stop))
        with pytest.raises(UserError, match=r"action_format.stop=.* cuts the reply"):
            check_environment(config)


def test_a_tokenizer_that_loses_the_action_format_is_refused(tmp_path):
    words = Tokenizer(models.WordLevel({"</s>": 0, "<unk>": 1}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", unk_token="<unk>")
    tokenizer.chat_template = TALK
    with pytest.raises(UserError, match=r"reads the reply .* back as '<unk>', in which no command"):
        check_environment(config_with(tmp_path, tokenizer))
    plain = ActionFormatConfig(kind="plain")
    assert check_environment(config_with(tmp_path, tokenizer, action_format=plain)) is None


def test_a_tokenizer_whose_unknown_words_end_a_turn_is_refused(tmp_path):
    words = Tokenizer(models.WordLevel({"</s>": 0}, unk_token="</s>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>")
    tokenizer.chat_template = TALK
    with pytest.raises(UserError, match="makes a control token of '</s>' even where a text"):
        check_environment(config_with(tmp_path, tokenizer))


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"env_name": "chess"}, "unknown environment 'chess'; available: .*sciworld"),
        ({"options": {"colour": 1}}, "unknown key 'colour'"),
        ({"train": TaskSetConfig(tasks=["cooking"])}, "unknown task type 'cooking'"),
        ({"train": TaskSetConfig(max_tasks=0)}, "is empty"),
        ({"val": {"v": TaskSetConfig(name="L7")}}, "L7"),
    ],
)
def test_check_environment_says_what_is_wrong(env, message):
    with pytest.raises(UserError, match=message):
        check_environment(make_config(**env))


def worker_of(config, rank):
    """One of two."""
    return RolloutWorker(config, replace(make_plan(config), rollout_workers=2), rank)


def test_a_worker_needs_a_rank():
    with pytest.raises(ValueError, match="rank=2 is not one of 2"):
        worker_of(make_config(), rank=2)


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [(None, "run/env_logs/rollout_001"), ("elsewhere", "elsewhere/rollout_001")],
)
def test_environments_log_to_the_run_folder_unless_told(chosen, expected):
    config = make_config(pool=PoolConfig(log_dir=chosen))
    config.trainer = RunConfig(default_local_dir="run")
    worker = worker_of(config, rank=1)
    assert Path(worker._pool_config().log_dir) == Path(expected)


def test_a_started_worker_logs_to_the_run_folder(tmp_path, clean_logging):
    config = make_config(env_name="chess")
    config.trainer = RunConfig(default_local_dir=str(tmp_path / "run"))
    with pytest.raises(UserError, match="unknown environment"):
        worker_of(config, rank=1).start()
    logging.getLogger("agent_system.progress").warning("slot 3 stalls")
    written = (tmp_path / "run" / "rollout_001.log").read_text()
    assert written.endswith("WARNING [worker rollout_001] agent_system.progress: slot 3 stalls\n")


def test_a_worker_that_never_started_can_be_closed():
    worker_of(make_config(), rank=0).close()


def test_an_engine_that_gave_up_is_a_sentence_with_a_remedy(tmp_path):
    class GivenUp:
        def sleep(self):
            raise EngineGaveUpError("it died and cannot be restarted (no memory)")

        def load_weights(self, update):
            self.sleep()

    config = make_config()
    config.trainer = RunConfig(default_local_dir=str(tmp_path))
    worker = worker_of(config, rank=1)
    worker._engine = GivenUp()
    for action in (worker.sleep, lambda: worker.update_weights(None)):
        with pytest.raises(UserError) as caught:
            action()
        message = str(caught.value)
        assert message.startswith("the engine of rollout_001 failed: it died and cannot be")
        assert str(tmp_path / "rollout_001.log") in message
        assert "max_num_seqs" in message and "resumes from the last checkpoint" in message


def test_environments_that_keep_failing_are_a_sentence_with_a_remedy(loop):
    class Collector:
        async def collect(self, engine, episodes, sampling, seed):
            yield "a trajectory"
            raise EnvPoolError("environment slot 3 had to be replaced 4 times")

    worker = worker_of(make_config(), rank=1)
    worker._engine, worker._collector, worker._loop = None, Collector(), loop
    trajectories = worker.collect([], None, 0)
    assert next(trajectories) == "a trajectory"
    with pytest.raises(UserError) as caught:
        next(trajectories)
    message = str(caught.value)
    assert message.startswith("the environments of rollout_001 failed: environment slot 3 had to")
    assert "resumes from the last checkpoint" in message


def test_a_running_rollout_is_cancelled_from_another_thread(loop):
    """What `RolloutWorker.cancel` relies on."""

    async def stuck():
        yield 1
        await asyncio.sleep(60)

    stream = loop.stream(stuck())
    assert next(stream) == 1
    threading.Timer(0.1, loop.cancel).start()
    with pytest.raises(CancelledError):
        next(stream)
    assert list(loop.stream(count([]))) == [0, 1, 2]  # the loop goes on


def test_those_who_cancel_at_once_do_not_cancel_each_other(loop):
    with ThreadPoolExecutor(8) as threads:
        cancelled = [threads.submit(loop.cancel) for _ in range(200)]
        closed = threads.submit(loop.close)
        assert [future.result() for future in [*cancelled, closed]] == [None] * 201


def test_a_worker_that_never_started_has_nothing_to_cancel():
    worker_of(make_config(), rank=0).cancel()
