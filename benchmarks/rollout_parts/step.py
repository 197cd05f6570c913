"""`step`: where the time of a training step goes, by a real run's own `timing_s` metrics."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rollout_parts.report import share, show
from verl.utils.json_lines import read_records

# timing_s/<phase> of a step -> the line of the table
TRAINER_PHASES: Mapping[str, str] = {
    "old_log_prob": "log-probs",
    "ref": "log-probs",
    "values": "log-probs",
    "adv": "update",
    "update_critic": "update",
    "update_actor": "update",
    "sync_weights": "weight sync",
    "live_check": "live check",
}
# timing_s/episode/<phase>, mean seconds of an episode -> the line
EPISODE_PHASES: Mapping[str, str] = {
    "generate": "generate",
    "reset": "environment",
    "env": "environment",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engine", default="auto", help="vllm, hf, or auto: vllm where installed")
    parser.add_argument("--preset", default="smollm2", help="of verl/trainer/config")
    parser.add_argument("--steps", type=int, default=4, help="training steps; the first warms up")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the run")


def run(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        train(options, Path(folder))
        steps = read_steps(Path(folder))
    seconds = {part: float(np.median([step[part] for step in steps])) for part in steps[0]}
    whole = seconds.pop("step")
    rows = [[part, value, share(value, whole)] for part, value in seconds.items()]
    show(
        ["part of a step", "seconds", "share"],
        [*rows, ["whole step", whole, "100%"]],
        [
            f"Medians of {len(steps)} steps after the first. Episodes play at the same time, so "
            "the seconds of collecting are split between generate and environment as the "
            "episodes' own waits are. Goal: other under 10%."
        ],
    )


def train(options: argparse.Namespace, folder: Path) -> None:
    """A run of the preset, without validation. Raises CalledProcessError when it fails."""
    subprocess.run(
        [
            sys.executable, "-m", "verl.trainer.main_ppo", "--config-name", options.preset,
            f"actor_rollout_ref.rollout.name={options.engine}",
            f"trainer.total_training_steps={options.steps}",
            f"trainer.default_local_dir={folder}",
            "trainer.val_before_train=false", "trainer.val_after_train=false",
            "trainer.save_freq=-1", *options.overrides,
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip


def read_steps(folder: Path) -> list[dict[str, float]]:
    """Seconds by part of every step but the first."""
    records = [record for record in read_records(folder / "metrics.jsonl") if is_step(record)]
    return [parts(record) for record in records[1:]]


def is_step(record: Mapping[str, float]) -> bool:
    return "timing_s/collect" in record


def parts(metrics: Mapping[str, float]) -> dict[str, float]:
    """The seconds of one step: each part, other, and the whole as `step`."""
    waits = {phase: metrics.get(f"timing_s/episode/{phase}", 0.0) for phase in EPISODE_PHASES}
    collect_s = metrics["timing_s/collect"]
    seconds: dict[str, float] = {}
    for phase, part in EPISODE_PHASES.items():
        spent = collect_s * waits[phase] / sum(waits.values())
        seconds[part] = seconds.get(part, 0.0) + spent
    for phase, part in TRAINER_PHASES.items():
        seconds[part] = seconds.get(part, 0.0) + metrics.get(f"timing_s/{phase}", 0.0)
    whole = metrics["timing_s/step"]
    return {**seconds, "other": whole - sum(seconds.values()), "step": whole}
