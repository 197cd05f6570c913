"""The driver's own bookkeeping over a long run, without models: memory, files, time to resume.

Trackers, rollouts and checkpoints are the trainer's; what they keep is made up.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, cast

import psutil
from rollout_parts.report import Cell, show

from verl.config.trainer import SessionConfig
from verl.trainer.checkpoint import CheckpointStore, load_driver_state
from verl.trainer.ppo.rollout_log import RolloutLog, read_rollouts
from verl.utils.json_lines import read_records
from verl.utils.tracker_backends import METRICS_FILE
from verl.utils.tracking import Tracking
from verl.workers.interfaces import AgentWorld

MB = 1 << 20


class MadeUp:
    """Its trajectories are records already."""

    def record(self, trajectory: Any) -> dict[str, Any]:
        return trajectory


class Driver:
    """What the trainer does for a step beside training, in its order."""

    def __init__(self, options: argparse.Namespace, root: Path) -> None:
        run = SessionConfig(default_local_dir=str(root), max_actor_ckpt_to_keep=2)
        self._options = options
        self._rng = random.Random(0)
        self._store = CheckpointStore(run)
        self.rollouts = RolloutLog(str(root / "rollouts"), cast(AgentWorld, MadeUp()))
        checkpoint = self._store.find()
        state = (
            {"step": 0, "tracker": None} if checkpoint is None else load_driver_state(checkpoint)
        )
        self.step: int = state["step"]
        resumed = None if checkpoint is None else self.step
        self.tracker = Tracking(
            "p", "e", ["file"], run_dir=root, resume_ids=state["tracker"], resume_step=resumed
        )
        if resumed is not None:
            self.rollouts.go_on_after(resumed)

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step += 1
            metrics = {f"part/metric_{i}": self._rng.random() for i in range(self._options.metrics)}
            text = "x" * self._options.episode_bytes
            episodes = [{"text": text}] * self._options.episodes
            self.rollouts.write("train", self.step, cast(Any, episodes))
            self.tracker.log(metrics, self.step)
            if self.step % self._options.save_freq == 0:
                state = {"step": self.step, "tracker": self.tracker.state_dict()}
                self._store.save(self.step, state, lambda folder: (folder / "actor").mkdir())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--save-freq", type=int, default=1_000)
    parser.add_argument("--metrics", type=int, default=100, help="of a step")
    parser.add_argument("--episodes", type=int, default=4, help="of a step")
    parser.add_argument("--episode-bytes", type=int, default=4_000)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to measure")


def run(options: argparse.Namespace) -> None:
    root = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        rows = [measured(options, root, part) for part in range(10)]
        check(options, root)
    finally:
        shutil.rmtree(root)
    show(
        ["steps", "ms a step", "memory (MB)", "to resume (s)", "growth then (MB)", "files", "MB"],
        rows,
    )


def measured(options: argparse.Namespace, root: Path, part: int) -> list[Cell]:
    """Resume, then a tenth of the run and half a period more, which the next resume forgets."""
    before, start = resident_mb(), time.perf_counter()
    driver = Driver(options, root)
    resumed, growth = time.perf_counter() - start, resident_mb() - before
    wanted = options.steps * (part + 1) // 10 + (options.save_freq // 2 if part < 9 else 0)
    steps, start = wanted - driver.step, time.perf_counter()
    driver.run(steps)
    each = 1e3 * (time.perf_counter() - start) / steps
    files = [path for path in root.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files) / MB
    return [driver.step, each, resident_mb(), resumed, growth, len(files), size]


def check(options: argparse.Namespace, root: Path) -> None:
    """Every step is there once, in order."""
    wanted = list(range(1, options.steps + 1))
    assert [record["step"] for record in read_records(root / METRICS_FILE)] == wanted
    played = [record["step"] for record in read_rollouts(root / "rollouts", "train")]
    assert played == [step for step in wanted for _ in range(options.episodes)]


def resident_mb() -> float:
    return psutil.Process().memory_info().rss / MB
