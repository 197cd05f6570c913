"""The schema of `env.*`, which the trainer registers with Hydra by import path."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class GroupConfig:
    """Members of a group play one task, variation and seed."""

    n: int = 1  # episodes a task (the group size of GRPO)


@dataclass
class ContextConfig:
    """How a conversation is shown to the policy and cut into training rows."""

    # turn: a fresh prompt and one row a turn; trajectory: one growing conversation and one row, a
    # new one when it is too long and goes on without its oldest turns
    kind: str = "trajectory"
    # turn context: which past turns a prompt shows. last_turns: the last history_length;
    # token_budget: the latest that take history_tokens together; summary: all, the older ones in
    # few words
    history: str = "last_turns"
    history_length: int = 5  # last_turns: turns shown; summary: turns shown in full, before them
    history_tokens: int = 1024  # token_budget: tokens of the commands and answers shown
    history_summary_words: int = 0  # summary: first words of each older answer; 0: only the command


@dataclass
class ActionFormatConfig:
    """What a response has to look like."""

    # think_action: <think>..</think><action>..</action>; plain: the response is the action
    kind: str = "think_action"
    # a response ends at any of these texts
    stop: list[str] = field(default_factory=lambda: ["</action>"])


@dataclass
class RewardConfig:
    """`success` at the end of a successful episode, 0 otherwise; by choice also score deltas."""

    success: float = 10.0  # reward of a successful episode, at its last turn
    score_delta_coef: float = 0.0  # adds coef * (score delta / 100) at the turn that earned it


@dataclass
class PoolConfig:
    """Environment processes of one rollout worker."""

    slots_per_worker: int = 8  # environment processes of each rollout worker
    start_timeout_s: float = 120.0  # seconds an environment may take to start
    reset_timeout_s: float = 60.0  # seconds a reset may take
    step_timeout_s: float = 60.0  # seconds a step may take
    stall_warning_s: float = 60.0  # a rollout without progress for so long names what it waits for
    # broken environments are restarted; so many times in a row is an error
    max_consecutive_replacements: int = 3
    # resident MiB of a slot's processes; above it they are replaced, between two episodes; null: no
    # limit
    max_memory_mb: int | None = None
    # simulators' stdout and stderr; null: env_logs in the run folder
    log_dir: str | None = None


@dataclass
class TaskSetConfig:
    """Tasks to draw from: a named list of the environment, or one in a JSON file."""

    # a list of the environment, or a *.json file: its path, or the name of one that comes along
    name: str = "L0_train"
    tasks: list[str] | None = None  # only these task types, by name
    max_tasks: int | None = None  # a seeded subset of so many tasks
    seed: int = 0  # of the subset


@dataclass
class EnvConfig:
    """`env.*`: the environment, its tasks, and how the agent talks to it."""

    env_name: str = "sciworld/SciWorldEnv"  # a registered environment
    seed: int = 0  # of the order in which training tasks are drawn
    # uniform_types: training draws every task type equally often, whatever the number of its
    # variations; uniform_tasks: every task
    task_weights: str = "uniform_types"
    max_steps: int = 30  # turns of an episode
    rollout: GroupConfig = field(default_factory=GroupConfig)
    context: ContextConfig = field(default_factory=ContextConfig)
    action_format: ActionFormatConfig = field(default_factory=ActionFormatConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    train: TaskSetConfig = field(default_factory=TaskSetConfig)
    # validation sets by a name of your choice
    val: dict[str, TaskSetConfig] = field(default_factory=dict)
    # the environment's own settings, checked by its package
    options: dict[str, Any] = field(default_factory=dict)
