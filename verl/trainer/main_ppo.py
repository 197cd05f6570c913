"""Train: `python -m verl.trainer.main_ppo [--config-name NAME] [--cfg job] [key=value ...]`."""

from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import replace
from pathlib import Path

from omegaconf import OmegaConf

from verl.config.compose import compose_config, plain
from verl.config.trainer import RunConfig
from verl.trainer.cli import run_cli
from verl.trainer.restarts import surviving_deaths
from verl.trainer.run import training_run
from verl.utils.report import summary_text, write_report
from verl.utils.tracking import Tracking

logger = logging.getLogger(__name__)


def main(arguments: list[str]) -> None:
    """Compose, check, train, report."""
    options = parse(arguments)
    composed, config = compose_config(options.overrides, options.config_name)
    if options.cfg is not None:
        sys.stdout.write(OmegaConf.to_yaml(composed))
        return
    run_dir = Path(config.trainer.default_local_dir).absolute()
    resolved = plain(composed)

    def attempt(run: RunConfig) -> Tracking:
        with training_run(replace(config, trainer=run), resolved) as trainer:
            trainer.fit()
        return trainer.tracker

    tracker = surviving_deaths(config.trainer, attempt)
    write_report(run_dir)
    logger.info("\n%s", summary_text(run_dir))
    tracker.check_complete()


def parse(arguments: list[str]) -> argparse.Namespace:
    """Hydra's usual flags."""
    parser = argparse.ArgumentParser(prog="python -m verl.trainer.main_ppo", description=__doc__)
    parser.add_argument("--config-name", "-cn", default="ppo_trainer", help="a preset")
    parser.add_argument("--cfg", "-c", choices=["job"], help="print the configuration and stop")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="see docs/configuration.md"
    )
    return parser.parse_intermixed_args(arguments)


if __name__ == "__main__":
    run_cli(main)
