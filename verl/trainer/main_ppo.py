"""Train: `python -m verl.trainer.main_ppo [--config-name NAME] [key=value ...]`."""

from __future__ import annotations

import logging
from pathlib import Path

from verl.config.compose import compose_from_argv
from verl.trainer.cli import run_cli
from verl.trainer.run import training_run
from verl.utils.report import summary_text, write_report

logger = logging.getLogger(__name__)


def main(arguments: list[str]) -> None:
    """Compose, check, train, report."""
    composed = compose_from_argv(arguments, default_config="ppo_trainer")
    if composed is None:  # --help or --cfg: printed, nothing to run
        return
    run_dir = Path(composed.config.trainer.default_local_dir).absolute()
    with training_run(composed.config, composed.resolved) as trainer:
        trainer.fit()
    write_report(run_dir)
    logger.info("\n%s", summary_text(run_dir))


if __name__ == "__main__":
    run_cli(main)
