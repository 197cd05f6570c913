"""One step off-policy against on-policy against a loop by hand: real Ray, model and ScienceWorld.

All runs share one set of workers: each begins with the weights, optimiser and random state that a
checkpoint of the untrained policy restores.
"""

import os
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from verl.algorithms.entropy_control import RolloutEntropies, StepContext
from verl.config.compose import compose_config
from verl.config.entropy_control import build_plugin
from verl.config.plan import make_plan
from verl.trainer.checkpoint import CheckpointStore
from verl.trainer.ppo.advantage_stage import (
    add_advantages,
    compare_with_rollout,
    token_level_rewards,
)
from verl.trainer.ppo.batching import MiniBatches, worker_view
from verl.trainer.ppo.metrics import data_metrics
from verl.trainer.ppo.ray_trainer import RayPPOTrainer
from verl.trainer.ppo.rollout_log import read_rollouts
from verl.trainer.run import load_world, training_run

from ..runs import GROUP, SMALL, TASKS, UNVALIDATED, Lines

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STEPS = 3
SETTINGS = [
    *SMALL,
    *UNVALIDATED,
    "actor_rollout_ref.model.path=small",
    "actor_rollout_ref.rollout.name=hf",
    "env.pool.slots_per_worker=4",
    "env.val.held_out.max_tasks=2",
    f"trainer.total_training_steps={STEPS}",
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Workers that are up, the configuration, and a checkpoint of how they began."""
    folder = tmp_path_factory.mktemp("async")
    here = Path.cwd()
    os.chdir(folder)
    _, config = compose_config(
        [*SETTINGS, f"trainer.default_local_dir={folder / 'start'}"], "quickstart"
    )
    try:
        with training_run(config, {}) as trainer:
            trainer.workers.actor.save_checkpoint(str(folder / "untrained"))
            yield SimpleNamespace(config=config, workers=trainer.workers, folder=folder)
    finally:
        os.chdir(here)


def make_trainer(cluster, name, *, correction="none", afresh=True, **run) -> RayPPOTrainer:
    if afresh:
        cluster.workers.actor.load_checkpoint(str(cluster.folder / "untrained"))
    folder = cluster.folder / name
    run |= {"default_local_dir": str(folder), "rollout_data_dir": str(folder / "rollouts")}
    config = replace(
        cluster.config,
        algorithm=replace(cluster.config.algorithm, rollout_correction=correction),
        trainer=replace(cluster.config.trainer, **run),
    )
    world = load_world(config)
    plan, plugin = make_plan(config), build_plugin(config)
    checkpoint = CheckpointStore(config.trainer).find()
    return RayPPOTrainer(config, plan, world, cluster.workers, plugin, Lines(), checkpoint)


def played(cluster, name) -> list[list[dict]]:
    """What each step played: of every trajectory the task and the sampled text."""
    steps = defaultdict(list)
    for record in read_rollouts(cluster.folder / name / "rollouts", "train"):
        turns = [turn["response"] for turn in record["turns"]]
        steps[record["step"]].append({"traj_uid": record["traj_uid"], "turns": turns})
    return list(steps.values())


def loop_by_hand(trainer) -> list[dict[str, float]]:
    """Collect, score, advantages, update, sync: plain, without the trainer's phases."""
    config, world, workers = trainer.config, trainer.world, trainer.workers
    actor, hook = config.actor_rollout_ref.actor, trainer.plugin.hook
    lines = []
    trainer.sync_weights()
    for step in range(STEPS):
        episodes = world.train_episodes(TASKS, GROUP)
        seed = config.trainer.seed * 1_000_003 + step
        trajectories = workers.rollouts.collect(episodes, world.sampling("train"), seed)
        batch = world.to_data_proto(trajectories)
        batch = batch.union(workers.actor.compute_log_prob(worker_view(batch)))
        batch.batch["token_level_rewards"], metrics = token_level_rewards(batch, config, 0.0)
        metrics |= compare_with_rollout(batch, config.algorithm)
        batch = add_advantages(batch, config.algorithm)
        context = StepContext(step, STEPS, hook.context_state(step, STEPS))
        cut = MiniBatches(
            actor.ppo_mini_batch_size,
            actor.ppo_epochs,
            ranks=1,
            balance=True,
            seed=config.trainer.seed,
            weighted=True,
        )
        of_updates = defaultdict(list)
        for rows, of_rows in cut.cut(batch, context):
            (reported,) = workers.actor.update_actor(rows, of_rows)
            for name, metric in reported.items():
                of_updates[name].append(metric.value)
        workers.actor.step_lr()
        metrics |= {name: float(np.mean(values)) for name, values in of_updates.items()}
        columns = (batch.batch[name] for name in ("entropys", "response_mask", "turn_ids"))
        metrics |= hook.after_step(
            step, RolloutEntropies(*columns, batch.non_tensor_batch["traj_uid"])
        )
        metrics |= data_metrics(batch) | world.metrics(trajectories)
        trainer.step = step + 1
        trainer.sync_weights()
        lines.append(metrics)
    return lines


@pytest.fixture(scope="module")
def on_policy(cluster):
    """Three steps of GRPO with EPO, strictly on-policy."""
    trainer = make_trainer(cluster, "on_policy")
    trainer.fit()
    return trainer.tracker.steps


@pytest.fixture(scope="module")
def off_policy(cluster):
    """The same, one step off-policy and corrected, with a checkpoint after the second step."""
    trainer = make_trainer(
        cluster, "off_policy", correction="token_tis", async_steps=1, save_freq=2
    )
    trainer.fit()
    return trainer.tracker.steps


def test_on_policy_is_the_loop_by_hand(cluster, on_policy):
    by_hand = loop_by_hand(make_trainer(cluster, "by_hand"))
    assert len(on_policy) == len(by_hand) == STEPS
    clock = ("timing", "perf/")
    for got, want in zip(on_policy, by_hand, strict=True):
        want = {name: value for name, value in want.items() if not name.startswith(clock)}
        assert {"actor/pg_loss", "epo/entropy", "training/rollout_kl_k1"} <= want.keys()
        assert {name: got[name] for name in want} == pytest.approx(want, rel=1e-4, abs=1e-5)
    assert any(line["actor/grad_norm"] > 0 for line in by_hand)


def test_on_policy_weights_are_fresh_and_agree_with_the_engine(on_policy):
    assert [line["training/weight_age"] for line in on_policy] == [0, 0, 0]
    for line in on_policy:
        assert line["training/rollout_ess"] == pytest.approx(1.0, abs=1e-4)
        assert line["training/rollout_probs_diff_max"] < 1e-3
        assert line["timing_s/rollout"] == pytest.approx(line["timing_s/collect"], abs=0.5)


def test_off_policy_weights_are_one_step_old_and_measurably_so(cluster, on_policy, off_policy):
    assert [line["training/weight_age"] for line in off_policy] == [0, 1, 1]
    for line in off_policy[1:]:
        assert line["training/rollout_ess"] < 1 - 1e-6
        assert line["training/rollout_kl_k3"] > 10 * on_policy[0]["training/rollout_kl_k3"]
        assert 0 <= line["training/rollout_correction_clipped"] <= 1
    # the first rollout comes from the untrained weights in both modes
    assert played(cluster, "off_policy")[0] == played(cluster, "on_policy")[0]


def test_a_resumed_off_policy_run_plays_the_tasks_that_were_pending(cluster, off_policy):
    resumed = make_trainer(
        cluster,
        "resumed",
        correction="token_tis",
        afresh=False,
        async_steps=1,
        resume_mode="resume_path",
        resume_from_path=str(cluster.folder / "off_policy" / "global_step_2"),
    )
    resumed.fit()
    uids = [[t["traj_uid"] for t in step] for step in played(cluster, "off_policy")]
    again = [[t["traj_uid"] for t in step] for step in played(cluster, "resumed")]
    assert again == [uids[2]]
    (line,) = resumed.tracker.steps
    assert line["training/weight_age"] == 0  # by the restored weights


def test_both_modes_play_the_same_when_the_policy_stands_still(cluster):
    # a warm-up that never ends leaves the actor as it is: a learning rate of exactly 0
    for name, async_steps in (("still_sync", 0), ("still_async", 1)):
        make_trainer(cluster, name, async_steps=async_steps, critic_warmup=STEPS).fit()
    assert played(cluster, "still_sync") == played(cluster, "still_async")
    assert len(played(cluster, "still_async")) == STEPS
