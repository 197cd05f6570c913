"""What the configuration says of the environment, checked: its prompts and task lists.

The core raises ValueError for a wrong setting; here it becomes the UserError that a user reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from agent_system.config import ActionFormatConfig
from agent_system.environments.registry import bind_env
from agent_system.interfaces import PromptBuilder
from agent_system.types import Observation, SamplingParams, Task
from verl.config.root import PPOConfig
from verl.utils.errors import UserError
from verl.workers.chat_check import check_chat
from verl.workers.chat_template import ChatTemplate
from verl.workers.model_loading import load_chat_template
from verl.workers.rollout.stopping import is_stopped


def check_environment(config: PPOConfig) -> None:
    """Everything about the environment that can be known before a worker is started.

    Raises:
        UserError: unknown environment or option, something it needs is not installed, an empty
            task list, a chat template that is missing or refuses.
    """
    prompts = build_prompts(config)
    with user_errors():
        bind_env(config.env).check()
    for which in ("train", *config.env.val):
        load_tasks(config, which)
    check_conversation(config, prompts)


def check_conversation(config: PPOConfig, prompts: PromptBuilder) -> None:
    """A sample conversation, written and read: what loses or adds something is refused.

    Raises:
        UserError: the template refuses or rewrites; the tokenizer loses the action format; a stop
            string cuts it.
    """
    chat = load_chat_template(config.actor_rollout_ref.model)
    observation = Observation("-")
    with user_errors():
        chat.opening(prompts.system("-"), prompts.first("-", observation))
    check_chat(chat, continues=config.env.context.kind == "trajectory")
    _check_reply(config.env.action_format, chat, prompts)


def _check_reply(
    action_format: ActionFormatConfig, chat: ChatTemplate, prompts: PromptBuilder
) -> None:
    """A reply in the action format is still one when it was tokens, up to where it is cut."""
    if action_format.kind != "think_action":
        return
    reply, observation = "<think>look</think><action>look</action>", Observation("-")
    expected = prompts.parse(reply, observation)
    if not expected.is_format_valid:  # a format of the environment's own
        return
    read = chat.decode(chat.encode(reply))
    if prompts.parse(read, observation) != expected:
        raise UserError(
            f"the tokenizer '{chat.tokenizer.name_or_path}' reads the reply {reply!r} back as "
            f"{read!r}, in which no command is found; use env.action_format.kind=plain or another "
            "tokenizer"
        )
    stop = tuple(action_format.stop)
    for length in range(1, len(read) + 1):
        if is_stopped(read[:length], SamplingParams(stop=stop)):
            read = read[:length]
            break
    if prompts.parse(read, observation) != expected:
        raise UserError(
            f"env.action_format.stop={list(stop)} cuts the reply {reply!r} to {read!r}, in which "
            "no command is found; leave it at its default"
        )


def load_tasks(config: PPOConfig, which: str) -> list[Task]:
    """The task list `train` or one of `env.val`. Raises UserError when it is unknown or empty."""
    lists = {**config.env.val, "train": config.env.train}
    if which not in lists:
        raise UserError(f"unknown task list '{which}'; available: {', '.join(sorted(lists))}")
    with user_errors():
        tasks = bind_env(config.env).tasks(lists[which])
    if not tasks:
        raise UserError(f"the task list '{which}' is empty; check the filters of env.{which}")
    return tasks


def build_prompts(config: PPOConfig) -> PromptBuilder:
    """The environment's prompts. Raises UserError on an unknown environment, option or format."""
    with user_errors():
        return bind_env(config.env).prompts(config.env.action_format)


@contextmanager
def user_errors() -> Iterator[None]:
    """The core raises ValueError for wrong settings; the trainer prints UserError to the user."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from error
