"""A training rank that dies costs the steps since the last checkpoint, not the run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from verl.config.trainer import SessionConfig
from verl.utils.atomic import latest_first
from verl.utils.errors import UserError, WorkerDiedError

logger = logging.getLogger(__name__)

Run = TypeVar("Run", bound=SessionConfig)
Result = TypeVar("Result")


def surviving_deaths(run: Run, attempt: Callable[[Run], Result]) -> Result:
    """What `attempt(run)` returns; when a training rank dies in it, it is called again, as if the
    same command had been given anew, up to `trainer.max_restarts` times.

    Raises:
        WorkerDiedError: it died once more; or what is left of the cluster cannot start it anew.
    """
    before = _newest(run)
    left = run.max_restarts
    death: WorkerDiedError | None = None
    while True:
        try:
            return attempt(run)
        except UserError as refusal:
            if death is None:
                raise
            death.add_note(f"it could not be started anew: {refusal}")
            raise death from refusal
        except WorkerDiedError as error:
            if left == 0:
                raise
            left -= 1
            death = error
            if _newest(run) != before:  # saved by this command, whatever that began from
                run = replace(run, resume_mode="auto")
            told = "; ".join([str(error), *getattr(error, "__notes__", [])])
            logger.warning("%s; all workers are started anew now, %d restarts left", told, left)


def _newest(run: SessionConfig) -> tuple[str, int] | None:
    """Which checkpoint is the newest in the run's folder; another one of its name differs."""
    newest = next(iter(latest_first(run.default_local_dir)), None)
    return None if newest is None else (newest.name, newest.stat().st_ino)
