"""The schema of `env.*`, which the trainer registers with Hydra by import path."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


def setting(default: T, doc: str, **limits: Any) -> T:
    """A field with its sentence and limits as metadata, in the words of `verl.config.fields`."""
    metadata = {"doc": doc, **limits}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class GroupConfig:
    """Members of a group play one task, variation and seed."""

    n: int = setting(1, "episodes a task (the group size of GRPO)", least=1)


@dataclass
class ContextConfig:
    """How a conversation is shown to the policy and cut into training rows."""

    kind: str = setting(
        "trajectory",
        "turn: a fresh prompt and one row a turn; trajectory: one growing conversation and one "
        "row, a new one when it is too long and goes on without its oldest turns",
        choices=("turn", "trajectory"),
    )
    reasoning: str = setting(
        "keep",
        "trajectory context: what later prompts show of a reply. keep: all that was sampled; "
        "drop: what follows its reasoning, as some chat templates do; every turn is then a row",
        choices=("keep", "drop"),
    )
    history: str = setting(
        "last_turns",
        "turn context: which past turns a prompt shows. last_turns: the last history_length; "
        "token_budget: the latest that take history_tokens together; summary: all, the older ones "
        "in few words",
        choices=("last_turns", "token_budget", "summary"),
    )
    history_length: int = setting(
        5, "last_turns: turns shown; summary: turns shown in full, before them", least=0
    )
    history_tokens: int = setting(
        1024, "token_budget: tokens of the commands and answers shown", least=0
    )
    history_summary_words: int = setting(
        0, "summary: first words of each older answer; 0: only the command", least=0
    )


@dataclass
class ActionFormatConfig:
    """What a response has to look like."""

    kind: str = setting(
        "think_action",
        "think_action: <think>..</think><action>..</action>; plain: the response is the action",
        choices=("think_action", "plain"),
    )
    stop: list[str] = setting(["</action>"], "a response ends at any of these texts")


@dataclass
class RewardConfig:
    """`success` at the end of a successful episode, 0 otherwise; by choice also score deltas."""

    success: float = setting(10.0, "reward of a successful episode, at its last turn")
    score_delta_coef: float = setting(
        0.0, "adds coef * (score delta / 100) at the turn that earned it"
    )


@dataclass
class PoolConfig:
    """Environment processes of one rollout worker."""

    slots_per_worker: int = setting(
        8, "environment processes of each rollout worker", least=1, harmless=True
    )
    start_timeout_s: float = setting(
        120.0, "seconds an environment may take to start", above=0, harmless=True
    )
    reset_timeout_s: float = setting(60.0, "seconds a reset may take", above=0, harmless=True)
    step_timeout_s: float = setting(60.0, "seconds a step may take", above=0, harmless=True)
    stall_warning_s: float = setting(
        60.0,
        "a rollout without progress for so long names what it waits for",
        above=0,
        harmless=True,
    )
    max_consecutive_replacements: int = setting(
        3,
        "broken environments are restarted; so many times in a row is an error",
        least=0,
        harmless=True,
    )
    max_memory_mb: int | None = setting(
        None,
        "resident MiB of a slot's processes; above it they are replaced, between two episodes; "
        "null: no limit",
        least=1,
        harmless=True,
    )
    max_text_chars: int = setting(
        100_000,
        "characters of an observation or action of the environment; a longer one loses its middle",
        least=100,
    )
    passed_secrets: list[str] = setting(
        [],
        "environment processes get all environment variables but those whose names end like a "
        "secret's (.._KEY, .._TOKEN, .._PASSWORD, ..); these, by name, they get all the same",
        harmless=True,
    )
    log_dir: str | None = setting(
        None, "simulators' stdout and stderr; null: env_logs in the run folder", harmless=True
    )


@dataclass
class TaskSetConfig:
    """Tasks to draw from: a named list of the environment, or one in a JSON file."""

    name: str = setting(
        "L0_train",
        "a list of the environment, or a *.json file: its path, or the name of one that comes "
        "along",
    )
    tasks: list[str] | None = setting(None, "only these task types, by name")
    max_tasks: int | None = setting(None, "a seeded subset of so many tasks", least=1)
    seed: int = setting(0, "of the subset", least=0, most=2**32 - 1)


@dataclass
class EnvConfig:
    """`env.*`: the environment, its tasks, and how the agent talks to it."""

    env_name: str = setting("sciworld/SciWorldEnv", "a registered environment", open=True)
    seed: int = setting(
        0, "of the order in which training tasks are drawn", least=0, most=2**32 - 1
    )
    task_weights: str = setting(
        "uniform_types",
        "uniform_types: training draws every task type equally often, whatever the number of its "
        "variations; uniform_tasks: every task",
        choices=("uniform_types", "uniform_tasks"),
    )
    max_steps: int = setting(30, "turns of an episode", least=1)
    rollout: GroupConfig = field(default_factory=GroupConfig)
    context: ContextConfig = field(default_factory=ContextConfig)
    action_format: ActionFormatConfig = field(default_factory=ActionFormatConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    train: TaskSetConfig = field(default_factory=TaskSetConfig)
    val: dict[str, TaskSetConfig] = setting(
        {}, "validation sets by a name of your choice", harmless=True
    )
    options: dict[str, Any] = setting(
        {}, "the environment's own settings, checked by its package", open=True
    )
