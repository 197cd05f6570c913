"""`trainer.*` and `ray_kwargs.*`: the run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from verl.config.fields import setting
from verl.utils.tracker_backends import TRACKERS

DEVICES = ("auto", "cuda", "cpu")
RESUME_MODES = ("auto", "disable", "resume_path")


@dataclass
class ValidationConfig:
    """What one validation measures, on every task set of `env.val`."""

    modes: list[str] = setting(
        ["sampled"],
        "sampled: with rollout.val_kwargs; greedy: the likeliest tokens",
        choices=("sampled", "greedy"),
        harmless=True,
    )
    episodes_per_task: int = setting(
        1,
        "episodes of each task, averaged; equal ones count once in the interval",
        least=1,
        harmless=True,
    )


@dataclass
class SessionConfig:
    """What every kind of run has: a place, a folder, trackers and checkpoints."""

    device: str = setting(
        "auto", "where models are; auto: cuda where there is one", choices=DEVICES, harmless=True
    )
    project_name: str = setting("epo", "folder and tracker project", harmless=True)
    experiment_name: str = setting("run", "folder and tracker run", harmless=True)
    logger: list[str] = setting(
        ["console", "file"],
        "trackers: where metrics go",
        choices=TRACKERS,
        open=True,
        harmless=True,
    )
    nnodes: int = setting(1, "machines of the Ray cluster", least=1, harmless=True)
    n_gpus_per_node: int = setting(
        1, "training workers a node; on a CPU: processes", least=1, harmless=True
    )
    seed: int = setting(0, "of everything that is drawn", least=0, most=2**32 - 1)
    save_freq: int = setting(
        -1, "steps; a checkpoint is always written at the end", least=-1, harmless=True
    )
    resume_mode: str = setting(
        "auto",
        "auto: from the newest checkpoint of the run folder; resume_path: from resume_from_path",
        choices=RESUME_MODES,
        harmless=True,
    )
    resume_changed: str = setting(
        "refuse",
        "a resumed run in which a key without ° has another value: refuse, or accept",
        choices=("refuse", "accept"),
        harmless=True,
    )
    resume_from_path: str | None = setting(
        None, "resume_path: a folder global_step_<n>", harmless=True
    )
    max_actor_ckpt_to_keep: int | None = setting(
        None, "keep the newest N checkpoints; None: all", least=1, harmless=True
    )
    default_local_dir: str = setting(
        "runs/${trainer.project_name}/${trainer.experiment_name}",
        "run folder: configuration, metrics, checkpoints and whatever else is written",
        harmless=True,
    )
    max_restarts: int = setting(
        1,
        "times that a run whose training rank died starts its workers anew and goes on from its "
        "last checkpoint, before it ends",
        least=0,
        harmless=True,
    )
    stall_warning_s: float = setting(
        120.0,
        "seconds of waiting for workers after which it is said for whom, and whether they answer",
        above=0,
        harmless=True,
    )
    stall_limit_s: float = setting(
        600.0,
        "further seconds after which a worker that does not answer is killed; one that answers may "
        "work for as long as it takes",
        above=0,
        harmless=True,
    )
    cpu_threads_per_worker: int = setting(1, "torch threads of each worker", least=1, harmless=True)


@dataclass
class RunConfig(SessionConfig):
    total_epochs: int = setting(
        30, "training steps when total_training_steps is null: one task batch a step", least=1
    )
    total_training_steps: int | None = setting(
        None, "training steps; wins over total_epochs", least=1
    )
    test_freq: int = setting(-1, "steps", least=-1, harmless=True)
    val_before_train: bool = setting(True, "validate the policy as it comes", harmless=True)
    val_after_train: bool = setting(True, "validate after the last step", harmless=True)
    val_only: bool = setting(False, "validate and stop", harmless=True)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    async_steps: int = setting(
        0,
        "1: the next rollout runs while this one is trained on, by weights one step old; "
        "0: on-policy",
        least=0,
        most=1,
    )
    critic_warmup: int = setting(0, "steps in which only the critic is trained", least=0)
    balance_batch: bool = setting(True, "spread tokens evenly over the ranks", harmless=True)
    rollout_data_dir: str | None = setting(
        "${trainer.default_local_dir}/rollouts", "null: keep no rollouts", harmless=True
    )
    log_val_generations: int = setting(
        8, "trajectories a validation sends to the trackers", least=0, harmless=True
    )
    log_entropy_above: float | None = setting(
        None,
        "metric training/entropy_above_share: share of tokens whose entropy (nats) is above this",
        least=0,
        harmless=True,
    )


@dataclass
class RayInitConfig:
    address: str | None = setting(
        None, "an existing cluster; null: start one here", harmless=True, door=True
    )
    num_cpus: int | None = setting(
        None, "logical CPUs of a cluster started here; default: enough", least=1, harmless=True
    )
    runtime_env: dict[str, Any] = setting({}, "Ray's runtime environment", harmless=True, door=True)


@dataclass
class RayConfig:
    ray_init: RayInitConfig = field(default_factory=RayInitConfig)
