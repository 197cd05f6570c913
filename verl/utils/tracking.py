"""One object to log to; its backends may fail, training does not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from verl.utils.errors import UserError
from verl.utils.importing import resolve_choice
from verl.utils.tracker_backends import TRACKERS, RecordsMissingError, RunInfo, Scalar, Tracker

logger = logging.getLogger(__name__)


class Tracking:
    """Sends metrics and generations to every chosen backend.

    A backend that raises, at the start or later, is dropped with one warning: whether its service
    has the step or not, sending it again could be wrong.
    """

    def __init__(
        self,
        project_name: str,
        experiment_name: str,
        default_backend: str | Sequence[str] = ("console",),
        config: Mapping[str, Any] | None = None,
        run_dir: str | Path = ".",
        resume_ids: Mapping[str, Any] | None = None,
        resume_step: int | None = None,
    ) -> None:
        """`resume_ids`, `resume_step`: `state_dict` and step of the checkpoint that is resumed.

        Raises:
            UserError: see `tracker_class`.
            ValueError: `resume_ids` without `resume_step`, which decides what is logged anew.
        """
        if resume_ids is not None and resume_step is None:
            raise ValueError("resume_ids came without resume_step; pass the step of the checkpoint")
        names = [default_backend] if isinstance(default_backend, str) else list(default_backend)
        chosen = {name: tracker_class(name) for name in names}
        run = RunInfo(project_name, experiment_name, Path(run_dir), config or {}, resume_step)
        run.run_dir.mkdir(parents=True, exist_ok=True)
        self._resume_ids = dict(resume_ids or {})
        self._not_scalar: set[str] = set()
        self._missing: RecordsMissingError | None = None
        self._trackers: dict[str, Tracker] = {}
        for name, backend in chosen.items():
            self._start(name, backend, run)

    @property
    def backends(self) -> list[str]:
        """Those that still work."""
        return list(self._trackers)

    def log(self, data: Mapping[str, Any], step: int) -> None:
        """Numbers, texts and arrays or tensors of one element; what is neither is left out."""
        metrics = {}
        for name, value in data.items():
            scalar = _scalar(value)
            if scalar is not None:
                metrics[name] = scalar
            elif name not in self._not_scalar:
                self._not_scalar.add(name)
                logger.warning("metric '%s' is no scalar and is not logged: %r", name, value)
        self._each(lambda tracker: tracker.log(metrics, step))

    def log_generations(self, records: Sequence[dict[str, Any]], step: int) -> None:
        """Example trajectories, JSON-able, as `AgentWorld.record` makes them."""
        if records:
            self._each(lambda tracker: tracker.log_generations(list(records), step))

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on in the same places; kept of failed backends too."""
        return self._resume_ids | {name: t.state_dict() for name, t in self._trackers.items()}

    def finish(self) -> None:
        """Flush and close. May be called again."""
        self._each(self._finish)
        self._trackers.clear()

    def check_complete(self) -> None:
        """Raises RecordsMissingError when a file of the run lacks records, once all is closed."""
        if self._missing is not None:
            raise self._missing

    def _finish(self, tracker: Tracker) -> None:
        try:
            tracker.finish()
        except RecordsMissingError as error:
            self._missing = error
            logger.warning("%s", error)

    def _start(self, name: str, backend: type[Tracker], run: RunInfo) -> None:
        try:
            self._trackers[name] = backend.create(run, self._resume_ids.get(name, {}))
        except Exception as error:
            _warn(name, error)

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                call(tracker)
            except Exception as error:  # whatever a tracker does, hours of training go on
                del self._trackers[name]
                _warn(name, error)


def tracker_class(name: str) -> type[Tracker]:
    """The backend that an entry of `trainer.logger` names. Raises UserError when there is none."""
    backend = resolve_choice("trainer.logger", name, TRACKERS)
    if not callable(getattr(backend, "create", None)):
        raise UserError(
            f"trainer.logger={name} has no create(run, state); name a class like those of "
            "verl.utils.tracker_backends, as docs/extending.md shows"
        )
    return backend


def _warn(name: str, error: Exception) -> None:
    reason = f"{type(error).__name__}: {error}"
    logger.warning("tracker '%s' is off for the rest of the run (%s)", name, reason)


def _scalar(value: Any) -> Scalar | None:
    if hasattr(value, "item"):
        try:
            value = value.item()
        except (ValueError, RuntimeError):  # numpy's and torch's word for more than one element
            return None
    return value if isinstance(value, int | float | str) else None
