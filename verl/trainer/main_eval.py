"""Evaluate a checkpoint on its run's fixed tasks, or on others by override.

`python -m verl.trainer.main_eval checkpoint=runs/.../global_step_30 [key=value ...]`
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from verl.config.compose import plain
from verl.config.saved import load_saved
from verl.trainer.checkpoint import CONFIG_FILE, checked_checkpoint
from verl.trainer.cli import run_cli
from verl.trainer.run import training_run
from verl.utils.atomic import atomic_write_json
from verl.utils.errors import UserError

logger = logging.getLogger(__name__)


def main(arguments: list[str]) -> None:
    """The run's own configuration, with the training parts switched off.

    `eval.json` has the metrics, and of every task set its list's name, version and hash.
    """
    checkpoint, overrides = split_checkpoint(arguments)
    output = checkpoint.parent / f"eval_{checkpoint.name}"
    composed, config = load_saved(
        checkpoint.parent / CONFIG_FILE,
        [
            "trainer.val_only=true",
            "trainer.resume_mode=resume_path",
            f"trainer.resume_from_path={checkpoint}",
            "trainer.logger=[console]",
            f"trainer.default_local_dir={output}",
            f"trainer.rollout_data_dir={output}/rollouts",
            *overrides,
        ],
    )
    with training_run(config, plain(composed)) as trainer:
        trainer.restore()
        trainer.sync_weights()
        metrics = trainer.validate()
    folder = Path(config.trainer.default_local_dir)
    target = folder / "eval.json"
    recorded = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    task_sets = {"validation_sets": recorded["validation_sets"]}
    atomic_write_json(target, {"metrics": metrics} | task_sets)
    logger.info("\n%s\nwritten to %s", evaluation_table(metrics), target)


def split_checkpoint(arguments: list[str]) -> tuple[Path, list[str]]:
    """(the folder given as checkpoint=..., everything else)."""
    given = [a.removeprefix("checkpoint=") for a in arguments if a.startswith("checkpoint=")]
    if len(given) != 1:
        raise UserError(
            f"{len(given)} arguments checkpoint=... given; name exactly one folder global_step_<n>"
        )
    return checked_checkpoint(given[0]), [a for a in arguments if not a.startswith("checkpoint=")]


def evaluation_table(metrics: dict[str, float]) -> str:
    """One line a task set and mode: success with its 95% interval."""
    suffix = "/success_rate"
    lines = [f"{'task set':<28}{'success':>9}{'95% interval':>18}{'episodes':>10}{'tasks':>7}"]
    for prefix in sorted(k.removesuffix(suffix) for k in metrics if k.endswith(suffix)):
        rate, low, high, n, tasks = (
            metrics[f"{prefix}/{name}"]
            for name in ("success_rate", "success_low", "success_high", "n", "tasks")
        )
        interval = f"{100 * low:.1f} - {100 * high:.1f}"
        lines.append(
            f"{prefix.removeprefix('val/'):<28}{100 * rate:>8.1f}%{interval:>18}{n:>10.0f}"
            f"{tasks:>7.0f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run_cli(main)
