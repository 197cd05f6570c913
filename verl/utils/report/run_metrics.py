"""A run's metrics as series over training steps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from verl.utils.json_lines import read_records

SUCCESS = re.compile(r"val/(?P<set>.+)/(?P<mode>sampled|greedy)/success_rate")
PHASE = re.compile(r"timing_s/(?P<phase>[^/]+)")
TURN_ENTROPY = re.compile(r"epo/entropy_turn/(?P<turn>\d+)")

STEP_PHASE = "step"
OUTSIDE_STEP = ("validate", "save_checkpoint")  # phases that timing_s/step does not contain
BESIDE_STEP = ("rollout",)  # runs within `collect`, or beside all phases of the step before
OTHER_PHASES = "other"


class Series(NamedTuple):
    """Values (N,) at training steps (N,), in order of the steps; without gaps, nulls and nan."""

    steps: np.ndarray
    values: np.ndarray


class Validation(NamedTuple):
    """Success of one task set in one mode; arrays (N,), `low` and `high` bound 95% intervals."""

    task_set: str
    mode: str
    steps: np.ndarray
    rate: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n: np.ndarray  # episodes; nan where unknown
    tasks: np.ndarray  # of these episodes; nan where unknown


class RunMetrics:
    """Everything that was logged, by step. Logged twice, the later value of a metric counts."""

    def __init__(self, records: Sequence[dict[str, Any]]) -> None:
        by_step: dict[int, dict[str, Any]] = {}
        for record in records:
            by_step.setdefault(int(record["step"]), {}).update(record)
        self._by_step = dict(sorted(by_step.items()))
        self.names = sorted({name for metrics in by_step.values() for name in metrics} - {"step"})

    @classmethod
    def read(cls, path: Path) -> RunMetrics:
        return cls(read_records(path))

    @property
    def steps(self) -> list[int]:
        return list(self._by_step)

    def series(self, *names: str) -> Series:
        """The first of `names` that was ever logged; empty when none was."""
        for name in names:
            points = [(step, _number(m.get(name))) for step, m in self._by_step.items()]
            points = [(step, value) for step, value in points if np.isfinite(value)]
            if points:
                steps, values = zip(*points, strict=True)
                return Series(np.array(steps), np.array(values, dtype=float))
        return Series(np.array([], dtype=int), np.array([], dtype=float))

    def at(self, name: str, steps: np.ndarray) -> np.ndarray:
        """The metric at `steps`, nan where it was not logged."""
        return np.array([_number(self._by_step.get(int(s), {}).get(name)) for s in steps], float)

    def matching(self, pattern: re.Pattern[str]) -> list[re.Match[str]]:
        """The names that `pattern` matches in full."""
        return [match for match in map(pattern.fullmatch, self.names) if match]

    def validations(self) -> list[Validation]:
        """One for each task set and mode, sorted."""
        found = []
        for match in self.matching(SUCCESS):
            steps, rate = self.series(match[0])
            if len(steps) == 0:
                continue
            prefix = match[0].removesuffix("success_rate")
            low, high = (self.at(f"{prefix}success_{end}", steps) for end in ("low", "high"))
            n, tasks = (self.at(f"{prefix}{name}", steps) for name in ("n", "tasks"))
            found.append(Validation(match["set"], match["mode"], steps, rate, low, high, n, tasks))
        return found

    def phase_seconds(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Steps (N,) and phase -> seconds (N,), the largest first; `other`: in no phase."""
        matches = self.matching(PHASE)
        names = {m["phase"]: m[0] for m in matches if m["phase"] not in BESIDE_STEP}
        steps = np.unique(np.concatenate([[], *(self.series(n).steps for n in names.values())]))
        seconds = {p: np.nan_to_num(self.at(name, steps)) for p, name in names.items()}
        whole = seconds.pop(STEP_PHASE, None)
        if whole is not None:
            inside = sum(
                (s for p, s in seconds.items() if p not in OUTSIDE_STEP), np.zeros(len(steps))
            )
            seconds[OTHER_PHASES] = np.maximum(whole - inside, 0.0)
        ordered = sorted(seconds.items(), key=lambda item: -item[1].sum())
        return steps, {phase: values for phase, values in ordered if values.any()}


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")
