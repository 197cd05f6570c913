"""The training loop: collect, score, advantages, update, sync. Source: PPO (arXiv 1707.06347), GRPO
(arXiv 2402.03300); the entropy term is a plugin (see `verl.algorithms.entropy_control`). With
`trainer.async_steps=1` a step trains on a rollout by the weights before the last update (one step
off-policy)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from verl.algorithms.entropy_control import Plugin, RolloutEntropies, StepContext
from verl.algorithms.kl import get_kl_controller
from verl.config.plan import RunPlan
from verl.config.root import PPOConfig
from verl.protocol import DataProto
from verl.trainer.checkpoint import CheckpointStore, going_on_without_room, load_driver_state
from verl.trainer.ppo.advantage_stage import (
    add_advantages,
    compare_with_rollout,
    rows_with_signal,
    token_level_rewards,
)
from verl.trainer.ppo.batching import MiniBatches, gather, optimise, spread, worker_view
from verl.trainer.ppo.cluster import Workers
from verl.trainer.ppo.live_check import LiveCheck
from verl.trainer.ppo.metrics import cost_metrics, data_metrics, sampling_metrics
from verl.trainer.ppo.rollout_log import RolloutLog
from verl.trainer.ppo.rollout_pipeline import Rollout, RolloutPipeline
from verl.trainer.ppo.validation import Validator
from verl.trainer.stop_requests import StopRequests, saving_when_stopped
from verl.utils.errors import UserError, root_cause
from verl.utils.logging import progress
from verl.utils.timing import PhaseTimer
from verl.utils.tracking import Tracking
from verl.workers.interfaces import AgentWorld

logger = logging.getLogger(__name__)

# What is logged here: name, unit, how the values of a step become one, meaning.
METRICS = (
    ("<model>/lr", "1", "-", "learning rate of the step"),
    (
        "training/rows_without_signal",
        "rows",
        "-",
        "dropped: all advantages of their group are zero",
    ),
    ("training/global_step", "steps", "-", "training steps finished"),
    ("timing_s/step", "s", "sum", "of a step, without validation and checkpoint"),
    ("timing_s/<phase>", "s", "sum", "of a phase since the last line, by the names in the code"),
)


class RayPPOTrainer:
    """Drives the workers through a run. Holds no weights, only finished trajectories."""

    def __init__(
        self,
        config: PPOConfig,
        plan: RunPlan,
        world: AgentWorld,
        workers: Workers,
        plugin: Plugin | None,
        tracker: Tracking,
        checkpoint: Path | None = None,
        stop: StopRequests | None = None,
    ) -> None:
        """`checkpoint`: where the run goes on from."""
        self.config = config
        self.plan = plan
        self.world = world
        self.workers = workers
        self.plugin = plugin
        self.tracker = tracker
        self.checkpoint = checkpoint
        self.stop = stop or StopRequests()
        self.total_steps = total_training_steps(config)
        self.step = 0  # finished training steps
        self.saved: int | None = None  # the step of the newest checkpoint
        self.engine_step: int | None = None  # the step whose weights the engines have
        self.timer = PhaseTimer()
        self.kl_controller = get_kl_controller(config.algorithm.kl_ctrl)
        self.checkpoints = CheckpointStore(config.trainer)
        self.rollout_log = RolloutLog(config.trainer.rollout_data_dir, world)
        self.validator = Validator(config, world, workers.rollouts)
        self.live_check = LiveCheck(config, plan, world, workers)
        self.pipeline = RolloutPipeline(config, world, workers.rollouts)
        self.runs_ahead = config.trainer.async_steps > 0
        if self.runs_ahead and config.algorithm.rollout_correction == "none":
            logger.warning(
                "trainer.async_steps=1 trains on tokens of older weights and nothing corrects it; "
                "consider algorithm.rollout_correction=token_tis"
            )

    def fit(self) -> None:
        """Train from the restored step to the last one."""
        run = self.config.trainer
        restored = self.restore()
        self.refresh_engines()
        if run.val_only or (self.step == 0 and run.val_before_train):
            self.track(self.validate())
        if run.val_only:
            return
        with saving_when_stopped(self):
            for _ in progress(range(self.step, self.total_steps), "training"):
                self.train_step()
        if self.step > restored and self.saved != self.step:
            self.save()
        if run.val_after_train and not self.is_due(run.test_freq):
            self.refresh_engines()
            self.track(self.validate())

    def train_step(self) -> None:
        """One rollout and the updates on it. SIGTERM drops a rollout, and waits for the updates."""
        with self.timer("step"):
            rollout = self.collect()
        with self.stop.postponed():
            self.train_on(rollout)

    def train_on(self, rollout: Rollout) -> None:
        """The step's updates, then whatever is due after it."""
        self.rollout_log.write("train", self.step + 1, rollout.trajectories)
        with self.timer("step"):
            self.release_engines()
            batch = self.score(self.world.to_data_proto(rollout.trajectories))
            batch, metrics = self.add_advantages(batch)
            metrics |= rollout.metrics | self.world.metrics(rollout.trajectories)
            metrics |= self.update(batch) | self.observe(batch)
            self.step += 1
            validates = self.is_due(self.config.trainer.test_freq)
            if validates or not self.runs_ahead:
                self.refresh_engines()
        if validates:
            metrics |= self.validate()
        # Tracked before it is saved: a run that dies in between repeats the step, it does not lose
        # the line. The time of saving shows up in the next line.
        cost = cost_metrics(batch, self.timer.seconds, self.workers.actor.world_size)
        self.track(metrics | data_metrics(batch) | cost)
        if self.is_due(self.config.trainer.save_freq):
            with going_on_without_room():
                self.save()

    def collect(self) -> Rollout:
        """This step's rollout: played now, or waited for."""
        with self.timer("collect"):
            return self.pipeline.take(self.step)

    def release_engines(self) -> None:
        """While this step trains, the next step's tasks are loaded, and played with async_steps=1;
        else the engines sleep."""
        is_last = self.step + 1 == self.total_steps
        if not self.runs_ahead:
            self.workers.rollouts.sleep()
            if not is_last:
                self.pipeline.load_ahead()
        elif not is_last:
            self.refresh_engines()
            self.pipeline.start(self.step + 1)

    def refresh_engines(self) -> None:
        """Give the engines the present weights, once they are idle."""
        if self.pipeline.is_started:
            with self.timer("collect"):
                self.pipeline.wait()
        if self.engine_step != self.step:
            self.sync_weights()
            self.engine_step = self.step

    def score(self, batch: DataProto) -> DataProto:
        """Adds old_log_probs and entropys (one forward); where needed ref_log_prob and values."""
        ranks = self.workers.actor.world_size
        shared, order = spread(worker_view(batch), ranks, self.config.trainer.balance_batch)
        with self.timer("old_log_prob"):
            results = [self.workers.actor.compute_log_prob(shared)]
        if self.plan.has_reference:
            with self.timer("ref"):
                results.append(self.workers.actor.compute_ref_log_prob(shared))
        if self.workers.critic is not None:
            with self.timer("values"):
                results.append(self.workers.critic.compute_values(shared))
        for result in results:
            batch = batch.union(gather(result, order, len(batch)))
        return batch

    def add_advantages(self, batch: DataProto) -> tuple[DataProto, dict[str, float]]:
        with self.timer("adv"):
            rewards, metrics = token_level_rewards(batch, self.config, self.kl_controller.value)
            batch.batch["token_level_rewards"] = rewards
            if "actor/reward_kl_penalty" in metrics:
                self.kl_controller.update(metrics["actor/reward_kl_penalty"], len(batch))
            metrics |= compare_with_rollout(batch, self.config.algorithm)
            return add_advantages(batch, self.config.algorithm), metrics

    def update(self, batch: DataProto) -> dict[str, float]:
        """Critic first, then (after its warm-up) the actor: a mini-batch is one optimiser step."""
        step, run, ranks = self.step_context(), self.config.trainer, self.workers.actor.world_size
        metrics: dict[str, float] = {}
        if self.workers.critic is not None:
            with self.timer("update_critic"):
                cut = MiniBatches.of(self.config.critic, run, ranks, weighted=False)
                metrics |= optimise(self.workers.critic.update_critic, cut.cut(batch, step))
                metrics["critic/lr"] = self.workers.critic.step_lr()[0]
        if self.step >= run.critic_warmup:
            if self.config.algorithm.drop_zero_advantage_groups:
                kept = rows_with_signal(batch)
                metrics["training/rows_without_signal"] = len(batch) - len(kept)
                batch = batch.select_idxs(kept)
            with self.timer("update_actor"):
                actor, weighted = self.config.actor_rollout_ref.actor, self.plugin is not None
                cut = MiniBatches.of(actor, run, ranks, weighted=weighted)
                metrics |= optimise(self.workers.actor.update_actor, cut.cut(batch, step))
                metrics["actor/lr"] = self.workers.actor.step_lr()[0]
        return metrics

    def step_context(self) -> StepContext:
        state = self.plugin.hook.context_state(self.step, self.total_steps) if self.plugin else {}
        return StepContext(self.step, self.total_steps, state)

    def observe(self, batch: DataProto) -> dict[str, float]:
        """Rollout metrics; the plugin takes the entropies in, as its next step's past."""
        threshold = self.config.trainer.log_entropy_above
        metrics = sampling_metrics(batch, self.step, threshold)
        if self.plugin is not None:
            observation = RolloutEntropies(
                batch.batch["entropys"],
                batch.batch["response_mask"],
                batch.batch["turn_ids"],
                batch.non_tensor_batch["traj_uid"],
            )
            metrics |= self.plugin.hook.after_step(self.step, observation)
        return metrics

    def sync_weights(self) -> None:
        with self.timer("sync_weights"):
            self.workers.weights.sync(self.step)
        with self.timer("live_check"):
            self.live_check.run(self.step)

    def validate(self) -> dict[str, float]:
        """Every task set in every configured mode, by the present weights."""

        def keep(part: str, trajectories: list[Any]) -> None:
            records = self.rollout_log.write("val", self.step, trajectories, part=part)
            shown = records[: self.config.trainer.log_val_generations]
            self.tracker.log_generations(shown, self.step)

        with self.timer("validate"):
            metrics = self.validator.run(keep)
        self.workers.rollouts.metrics()  # its share of the counters is no training step's
        return metrics

    def is_due(self, frequency: int) -> bool:
        return frequency > 0 and self.step % frequency == 0

    def save(self) -> None:
        with self.timer("save_checkpoint"):
            self.checkpoints.save(self.step, self.state_dict(), self._save_workers)
        self.saved = self.step

    def _save_workers(self, folder: Any) -> None:
        self.workers.actor.save_checkpoint(str(folder / "actor"))
        if self.workers.critic is not None:
            self.workers.critic.save_checkpoint(str(folder / "critic"))

    def restore(self) -> int:
        """Continue from the run's checkpoint, if it has one. Returns its step, or 0.

        Raises:
            UserError: the checkpoint is of a run with other tasks or other entropy settings.
        """
        folder = self.checkpoint
        if folder is None:
            return 0
        logger.info("resuming from %s", folder)
        self.workers.actor.load_checkpoint(str(folder / "actor"))
        if self.workers.critic is not None:
            self.workers.critic.load_checkpoint(str(folder / "critic"))
        try:
            self.load_state_dict(load_driver_state(folder))
        except UserError:
            raise
        except Exception as error:  # a strange state makes plugin and world raise anything
            reason = error if isinstance(error, ValueError) else root_cause(error)
            raise UserError(
                f"cannot resume from {folder}: {reason}; keep the run's settings, or start afresh "
                "under another trainer.experiment_name"
            ) from error
        self.saved = self.step
        if folder.parent == self.checkpoints.root:  # not one of another run
            self.rollout_log.go_on_after(self.step)
        return self.step

    def state_dict(self) -> dict[str, Any]:
        """Everything that decides the next step, except what the workers save themselves."""
        return {
            "step": self.step,
            "chat_date": self.plan.chat_date,
            "world": self.pipeline.world_state(),
            "kl_controller": self.kl_controller.state_dict(),
            "plugin": self.plugin.hook.state_dict() if self.plugin else None,
            "tracker": self.tracker.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        if self.config.trainer.val_only:  # an evaluation may have other tasks
            return
        self.world.load_state_dict(state["world"])
        self.kl_controller.load_state_dict(state["kl_controller"])
        if self.plugin is not None and state["plugin"] is not None:
            self.plugin.hook.load_state_dict(state["plugin"])

    def track(self, metrics: dict[str, float]) -> None:
        """Log the metrics with the seconds since the last line."""
        seconds = {f"timing_s/{phase}": value for phase, value in self.timer.seconds.items()}
        metrics = {**seconds, **self.live_check.metrics(), **metrics}
        self.tracker.log({**metrics, "training/global_step": self.step}, step=self.step)
        self.timer = PhaseTimer()


def total_training_steps(config: PPOConfig) -> int:
    """K: the configured number of steps; an epoch is one batch of tasks."""
    return config.trainer.total_training_steps or config.trainer.total_epochs
