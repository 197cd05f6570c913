"""`trainer.*` and `ray_kwargs.*`: the run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class ValidationConfig:
    """What one validation measures, on every task set of `env.val`."""

    # sampled: rollout.val_kwargs; greedy
    modes: list[str] = field(default_factory=lambda: ["sampled"])
    episodes_per_task: int = 1  # episodes of each task, averaged


@dataclass
class RunConfig:
    device: str = "auto"  # auto | cuda | cpu
    # training steps when total_training_steps is null: one task batch a step
    total_epochs: int = 30
    total_training_steps: int | None = None  # training steps; wins over total_epochs
    project_name: str = "epo"  # folder and tracker project
    experiment_name: str = "run"  # folder and tracker run
    # console | file | tensorboard | wandb | import path of a tracker of your own
    logger: list[str] = field(default_factory=lambda: ["console", "file"])
    nnodes: int = 1  # machines of the Ray cluster
    n_gpus_per_node: int = 1  # training workers a node; on a CPU: processes
    seed: int = 0  # of shuffling, sampling and initialisation
    save_freq: int = -1  # steps; a checkpoint is always written at the end
    test_freq: int = -1  # steps
    val_before_train: bool = True  # validate the policy as it comes
    val_after_train: bool = True  # validate after the last step
    val_only: bool = False  # validate and stop
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    # 1: the next rollout runs while this one is trained on, by weights one step old; 0: on-policy
    async_steps: int = 0
    critic_warmup: int = 0  # steps in which only the critic is trained
    resume_mode: str = "auto"  # auto | disable | resume_path
    resume_from_path: str | None = None  # resume_path: a folder global_step_<n>
    max_actor_ckpt_to_keep: int | None = None  # keep the newest N checkpoints; None: all
    # run folder: configuration, metrics, rollouts, curves, checkpoints
    default_local_dir: str = "runs/${trainer.project_name}/${trainer.experiment_name}"
    balance_batch: bool = True  # spread tokens evenly over the ranks
    rollout_data_dir: str | None = "${trainer.default_local_dir}/rollouts"  # null: keep no rollouts
    log_val_generations: int = 8  # trajectories a validation sends to the trackers
    # metric training/entropy_above_share: share of tokens whose entropy (nats) is above this
    log_entropy_above: float | None = None
    cpu_threads_per_worker: int = 1  # torch threads of each worker


@dataclass
class RayInitConfig:
    address: str | None = None  # an existing cluster; null: start one here
    num_cpus: int | None = None  # logical CPUs of a cluster started here; default: enough
    runtime_env: dict[str, Any] = field(default_factory=dict)  # Ray's runtime environment


@dataclass
class RayConfig:
    ray_init: RayInitConfig = field(default_factory=RayInitConfig)
