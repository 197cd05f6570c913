"""Where a run's numbers go: the console, JSON lines, TensorBoard, Weights & Biases.

Each backend may raise at any time; `verl.utils.tracking` drops it and training goes on. Files do
not raise: they catch up on what the disk refused.
"""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from verl.utils.json_lines import JsonLinesFile, drop_records_after

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
GENERATIONS_FILE = "generations.jsonl"
STEP_METRIC = "training/global_step"

# Label -> metric, in the order of the console's line. Of several with one label the first is taken.
CONSOLE_METRICS = (
    ("success", "episode/success_rate"),
    ("reward", "episode/reward/mean"),
    ("turns", "episode/length/mean"),
    ("entropy", "epo/entropy_step"),
    ("entropy", "actor/entropy"),
    ("pg loss", "actor/pg_loss"),
    ("vf loss", "critic/vf_loss"),
    ("kl", "actor/kl_loss"),
    ("kl", "actor/ppo_kl"),
    ("grad norm", "actor/grad_norm"),
)
STEP_SECONDS = "timing_s/step"

Scalar = float | int | bool | str


@dataclass(frozen=True)
class RunInfo:
    """What a backend may want to know of the run. `resume_step`: None for a new run."""

    project_name: str
    experiment_name: str
    run_dir: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    resume_step: int | None = None


class RecordsMissingError(OSError):
    """A file of the run lacks records for good: the disk had no room, and has none at the end."""

    def __init__(self, path: Path, missing: int) -> None:
        super().__init__(errno.ENOSPC, f"{path} lacks {missing} lines that it had no room for")

    def __str__(self) -> str:
        return str(self.args[1])


class Tracker(Protocol):
    """One backend. `state_dict` is JSON-able and is handed to `create` when the run is resumed."""

    @classmethod
    def create(cls, run: RunInfo, state: Mapping[str, Any]) -> Tracker: ...

    def log(self, metrics: Mapping[str, Scalar], step: int) -> None: ...

    def log_generations(self, records: list[dict[str, Any]], step: int) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def finish(self) -> None: ...


class ConsoleTracker:
    """The key numbers of a step on one line, and one line for each validation."""

    @classmethod
    def create(cls, run: RunInfo, state: Mapping[str, Any]) -> ConsoleTracker:
        return cls()

    def log(self, metrics: Mapping[str, Scalar], step: int) -> None:
        numbers: dict[str, str] = {}
        for label, name in CONSOLE_METRICS:
            if name in metrics:
                numbers.setdefault(label, f"{label} {short(metrics[name])}")
        if numbers:
            seconds = [f"{metrics[STEP_SECONDS]:.1f} s"] if STEP_SECONDS in metrics else []
            logger.info("step %d | %s", step, " | ".join([*numbers.values(), *seconds]))
        for name in metrics:
            if name.startswith("val/") and name.endswith("/success_rate"):
                logger.info("step %d | %s", step, validation_line(metrics, name))

    def log_generations(self, records: list[dict[str, Any]], step: int) -> None:
        """Too long for a console; the rollout files have them."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def finish(self) -> None:
        """Nothing is held open."""


def short(value: Scalar) -> str:
    """Three significant digits: `0.0123`, `12.3`, `1.2e-06`."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def validation_line(metrics: Mapping[str, Scalar], success_name: str) -> str:
    """`val l1 sampled: success 42.0% [33.8, 50.6], n 128, tasks 128, score 55.1`."""
    prefix = success_name.removesuffix("/success_rate")
    line = f"{prefix.replace('/', ' ')}: success {100 * metrics[success_name]:.1f}%"
    low, high = metrics.get(f"{prefix}/success_low"), metrics.get(f"{prefix}/success_high")
    if low is not None and high is not None:
        line += f" [{100 * low:.1f}, {100 * high:.1f}]"
    for name in ("n", "tasks", "score"):
        if f"{prefix}/{name}" in metrics:
            line += f", {name} {short(metrics[f'{prefix}/{name}'])}"
    return line


class FileTracker:
    """`metrics.jsonl` and `generations.jsonl` in the run folder, which the local report reads."""

    @classmethod
    def create(cls, run: RunInfo, state: Mapping[str, Any]) -> FileTracker:
        """Resumed, it forgets what came after the checkpoint; new, it keeps old files aside."""
        for name in (METRICS_FILE, GENERATIONS_FILE):
            path = run.run_dir / name
            if run.resume_step is not None:
                drop_records_after(path, run.resume_step)
            elif path.exists():
                os.replace(path, path.with_name(f"{name}.previous"))
        return cls(run.run_dir)

    def __init__(self, run_dir: Path) -> None:
        self._metrics = JsonLinesFile(run_dir / METRICS_FILE)
        self._generations = JsonLinesFile(run_dir / GENERATIONS_FILE)

    def log(self, metrics: Mapping[str, Scalar], step: int) -> None:
        self._metrics.append({"step": step, **metrics})

    def log_generations(self, records: list[dict[str, Any]], step: int) -> None:
        for record in records:
            self._generations.append({**record, "step": step})

    def state_dict(self) -> dict[str, Any]:
        return {}

    def finish(self) -> None:
        """Raises RecordsMissingError when the disk had no room for all of them."""
        for file in (self._metrics, self._generations):
            file.close()
        for file in (self._metrics, self._generations):
            if file.missing:
                raise RecordsMissingError(file.path, file.missing)


class TensorBoardTracker:
    """Event files in `<run folder>/tensorboard`."""

    @classmethod
    def create(cls, run: RunInfo, state: Mapping[str, Any]) -> TensorBoardTracker:
        return cls(run)

    def __init__(self, run: RunInfo) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge_step = None if run.resume_step is None else run.resume_step + 1
        self._writer = SummaryWriter(str(run.run_dir / "tensorboard"), purge_step=purge_step)

    def log(self, metrics: Mapping[str, Scalar], step: int) -> None:
        for name, value in metrics.items():
            if not isinstance(value, str):
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def log_generations(self, records: list[dict[str, Any]], step: int) -> None:
        for i, record in enumerate(records):
            text = json.dumps(record, indent=2, ensure_ascii=False)
            self._writer.add_text(f"generations/{i}", f"```json\n{text}\n```", step)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def finish(self) -> None:
        self._writer.close()


class WandbTracker:
    """A Weights & Biases run; offline unless `WANDB_API_KEY` or `WANDB_MODE` says otherwise."""

    @classmethod
    def create(cls, run: RunInfo, state: Mapping[str, Any]) -> WandbTracker:
        return cls(run, run_id=state.get("id"))

    def __init__(self, run: RunInfo, run_id: str | None) -> None:
        import wandb

        self._wandb = wandb
        offline = not (os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE"))
        if offline:
            logger.info(
                "WANDB_API_KEY is not set: wandb runs offline; `wandb sync` uploads it later"
            )
        self._run = wandb.init(
            project=run.project_name,
            name=run.experiment_name,
            dir=run.run_dir,
            config=dict(run.config),
            id=run_id,
            resume="allow",
            mode="offline" if offline else None,  # None: as WANDB_MODE says, else online
        )
        # Our own step axis: wandb's may not go back, but a resumed run starts before its last step.
        self._run.define_metric(STEP_METRIC)
        self._run.define_metric("*", step_metric=STEP_METRIC)

    def log(self, metrics: Mapping[str, Scalar], step: int) -> None:
        self._run.log({**metrics, STEP_METRIC: step})

    def log_generations(self, records: list[dict[str, Any]], step: int) -> None:
        columns = list(dict.fromkeys(name for record in records for name in record))
        rows = [[_cell(record.get(name)) for name in columns] for record in records]
        table = self._wandb.Table(columns=[*columns], data=rows)
        self._run.log({"val/generations": table, STEP_METRIC: step})

    def state_dict(self) -> dict[str, Any]:
        return {"id": self._run.id}

    def finish(self) -> None:
        self._run.finish()


def _cell(value: Any) -> str:
    """A table column has one type, so every cell is text."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


TRACKERS: dict[str, type[Tracker]] = {
    "console": ConsoleTracker,
    "file": FileTracker,
    "tensorboard": TensorBoardTracker,
    "wandb": WandbTracker,
}
