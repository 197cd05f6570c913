"""The loop of behaviour cloning: epochs of batches, one optimiser step each."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from verl.config.sft import SFTConfig, last_epoch
from verl.single_controller.base import WorkerGroup
from verl.trainer.checkpoint import CheckpointStore, going_on_without_room, load_driver_state
from verl.trainer.sft.batches import ConversationData, SFTBatch
from verl.trainer.stop_requests import StopRequests, saving_when_stopped
from verl.utils.errors import UserError
from verl.utils.logging import progress
from verl.utils.timing import PhaseTimer
from verl.utils.tracking import Tracking

logger = logging.getLogger(__name__)

# What is logged here: name, unit, how the values of a step become one, meaning.
METRICS = (
    ("sft/epoch", "epochs", "-", "finished"),
    ("perf/tokens_per_s", "tokens/s", "-", "trained on"),
    ("val/sft/<loss|reply_loss>", "nats", "mean", "the losses on `data.val_files`, over tokens"),
)


class SFTTrainer:
    """Trains `workers` on `train`; measures the loss on `validation` when there is any."""

    def __init__(
        self,
        config: SFTConfig,
        workers: WorkerGroup,
        train: ConversationData,
        validation: ConversationData | None,
        tracker: Tracking,
        checkpoint: Path | None = None,
        stop: StopRequests | None = None,
    ) -> None:
        """`checkpoint`: where the run goes on from."""
        self.config = config
        self.workers = workers
        self.train = train
        self.validation = validation
        self.tracker = tracker
        self.checkpoint = checkpoint
        self.checkpoints = CheckpointStore(config.trainer)
        self.stop = stop or StopRequests()
        self.step = 0  # finished optimiser steps
        self.saved: int | None = None  # the step of the newest checkpoint

    @property
    def total_steps(self) -> int:
        return last_epoch(self.config.trainer) * self.train.batches_per_epoch

    def fit(self) -> None:
        """Train from the restored step to the last one, then save and export."""
        run = self.config.trainer
        self.restore()
        with (
            saving_when_stopped(self),
            progress(total=self.total_steps - self.step, description="cloning") as bar,
        ):
            for epoch in range(
                self.step // self.train.batches_per_epoch, last_epoch(self.config.trainer)
            ):
                for batch in self.remaining_batches(epoch):
                    with self.stop.postponed():
                        self.train_step(batch, epoch)
                    bar.update()
        if not self.is_due(run.test_freq):
            self.tracker.log(self.validate(), self.step)
        if self.saved != self.step:
            self.save()
        self.workers.export_hf(str(Path(run.export_dir).absolute()))
        logger.info("the trained model is in %s", run.export_dir)

    def remaining_batches(self, epoch: int) -> Iterator[SFTBatch]:
        """The batches of `epoch` that a resumed run has not seen yet."""
        seen = self.step - epoch * self.train.batches_per_epoch
        return self.train.batches(epoch, self.workers.world_size, first=seen)

    def train_step(self, batch: SFTBatch, epoch: int) -> None:
        timer = PhaseTimer()
        with timer("step"):
            metrics = self.workers.update(*batch)[0]
        self.step += 1
        tokens = int(batch.rows.batch["attention_mask"].sum())
        metrics |= {
            "sft/epoch": float(epoch),
            "perf/tokens_per_s": tokens / timer.seconds["step"],
            "timing_s/step": timer.seconds["step"],
        }
        if self.is_due(self.config.trainer.test_freq):
            metrics |= self.validate()
        self.tracker.log(metrics, self.step)
        if self.is_due(self.config.trainer.save_freq):
            with going_on_without_room():
                self.save()

    def validate(self) -> dict[str, float]:
        """Mean losses over the validation conversations, every batch weighing by its tokens."""
        if self.validation is None:
            return {}
        totals: Counter[str] = Counter()
        weights: Counter[str] = Counter()
        for batch in self.validation.batches(0, self.workers.world_size):
            losses = self.workers.evaluate(*batch)[0]
            weights_of = {
                "sft/loss": batch.sums.weight,
                "sft/reply_loss": batch.sums.reply_tokens,
            }
            for name, weight in weights_of.items():
                totals[name] += losses[name] * weight
                weights[name] += weight
        return {f"val/{name}": totals[name] / max(weights[name], 1) for name in totals}

    def is_due(self, frequency: int) -> bool:
        return frequency > 0 and self.step % frequency == 0

    def save(self) -> None:
        state = {
            "step": self.step,
            "chat_date": self.train.chat_date,
            "batches_per_epoch": self.train.batches_per_epoch,
            "tracker": self.tracker.state_dict(),
        }
        self.checkpoints.save(
            self.step, state, lambda folder: self.workers.save_checkpoint(str(folder / "actor"))
        )
        self.saved = self.step

    def restore(self) -> None:
        """Continue from the run's checkpoint, if it has one.

        Raises:
            UserError: it was made with other data or another batch size.
        """
        folder = self.checkpoint
        if folder is None:
            return
        state = load_driver_state(folder)
        batches = state.get("batches_per_epoch")  # None: it is not one of cloning
        if batches != self.train.batches_per_epoch:
            raise UserError(
                f"the checkpoint {folder} has {batches} batches an epoch and this run "
                f"{self.train.batches_per_epoch}; resume with the same data and "
                "data.train_batch_size, or set trainer.resume_mode=disable"
            )
        self.workers.load_checkpoint(str(folder / "actor"))
        self.step = self.saved = state["step"]
        logger.info("resuming from %s", folder)
