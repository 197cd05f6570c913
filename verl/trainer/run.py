"""The composition root: a typed configuration becomes a running trainer, then is taken down."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

from verl.config.checks import check_values
from verl.config.entropy_control import build_plugin
from verl.config.machine import check_machine
from verl.config.plan import RunPlan, make_plan
from verl.config.root import PPOConfig
from verl.config.saved import load_saved_ppo
from verl.trainer.checkpoint import (
    CONFIG_FILE,
    CheckpointStore,
    changes_on_resume,
    check_has_critic,
    checkpoint_bytes,
    date_on_resume,
    tell_changes,
)
from verl.trainer.ppo.cluster import process_count, start_workers
from verl.trainer.ppo.ray_trainer import RayPPOTrainer, total_training_steps
from verl.trainer.run_folder import check_run_folder, open_run_folder
from verl.trainer.session import open_tracker, record_run, run_session
from verl.utils.importing import resolve_choice
from verl.workers.chat_check import tell_chat_notes
from verl.workers.interfaces import AgentWorld
from verl.workers.model_loading import (
    load_causal_lm,
    load_chat_template,
    load_value_model,
    resolve_model_path,
)
from verl.workers.model_support import check_models

logger = logging.getLogger(__name__)

# Import paths, because verl never imports the packages of others itself.
AGENT_WORLDS = {"agent_system": "agent_system.adapters.world:World"}


@contextmanager
def training_run(config: PPOConfig, resolved: dict[str, Any]) -> Iterator[RayPPOTrainer]:
    """A trainer with its workers up. Everything a user can get wrong is refused before Ray starts.

    `resolved` is the configuration as plain data; it is written to the run folder.
    """
    check_values(config)
    check_run_folder(config.trainer)
    plan = make_plan(config)
    check_machine(config, plan)
    model, run = config.actor_rollout_ref.model, config.trainer
    resolve_model_path(model.path, model.load_method)
    load_chat_template(model)
    check_models(config, plan)
    world = load_world(config)
    world.check()
    plugin = build_plugin(config)
    store = CheckpointStore(run)
    if not run.val_only:
        store.check_room_at_start(lambda: run_bytes(config, plan))
    checkpoint = store.find()
    changes = []
    if checkpoint is not None:
        before = load_saved_ppo(checkpoint.parent / CONFIG_FILE)
        changes = changes_on_resume(run, checkpoint, before, config)
        if plan.has_critic:
            check_has_critic(checkpoint)
        plan = replace(plan, chat_date=date_on_resume(model, checkpoint))
    with open_run_folder(run) as folder:
        tell_changes(changes)
        context = config.env.context
        keeps_reasoning = (context.kind, context.reasoning) == ("trajectory", "keep")
        tell_chat_notes(load_chat_template(model, plan.chat_date), keeps_reasoning=keeps_reasoning)
        environment = record_run(folder, resolved, run_facts(plan, world))
        record = resolved | {"environment": environment}
        logger.info(
            "run folder %s; on %s: %d training and %d rollout workers with %d environments each",
            folder,
            plan.device,
            run.n_gpus_per_node * run.nnodes,
            plan.rollout_workers,
            config.env.pool.slots_per_worker,
        )
        regularizer, steps = plugin.regularizer if plugin else None, total_training_steps(config)
        with (
            run_session(
                run, config.ray_kwargs.ray_init, process_count(config, plan), folder
            ) as stop,
            closing(start_workers(config, plan, world, regularizer, steps)) as workers,
            open_tracker(run, record, folder, checkpoint) as tracker,
        ):
            yield RayPPOTrainer(config, plan, world, workers, plugin, tracker, checkpoint, stop)


def run_bytes(config: PPOConfig, plan: RunPlan) -> int:
    """About what a checkpoint of this run takes."""
    policy, critic = config.actor_rollout_ref, config.critic
    size = checkpoint_bytes(load_causal_lm, policy.model, policy.actor.fsdp_config)
    if plan.has_critic:
        size += checkpoint_bytes(load_value_model, critic.model, critic.model.fsdp_config)
    return size


def load_world(config: PPOConfig) -> AgentWorld:
    """The agent's side of this run. Raises UserError when there is none of that name."""
    choice = config.actor_rollout_ref.rollout.agent_world
    return resolve_choice("actor_rollout_ref.rollout.agent_world", choice, AGENT_WORLDS)(config)


def run_facts(plan: RunPlan, world: AgentWorld) -> dict[str, Any]:
    """What a run is made of besides its configuration: its device, its tasks by their hashes."""
    task_lists = world.task_lists()
    warn_of_overlap(task_lists["validation_sets"])
    return {"device": plan.device, "reference_policy": plan.has_reference, **task_lists}


def warn_of_overlap(validation_sets: Mapping[str, Mapping[str, Any]]) -> None:
    """Say which validation sets have tasks that are trained on."""
    for name, tasks in validation_sets.items():
        if tasks["in_training"]:
            logger.warning(
                "%d of the %d tasks of the validation set '%s' are in env.train too, some perhaps "
                "under another seed: success on it does not say how the policy does on tasks it "
                "has not seen",
                tasks["in_training"],
                tasks["n"],
                name,
            )
