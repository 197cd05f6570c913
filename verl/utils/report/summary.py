"""What a run achieved, in plain text."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from verl.utils.report.run_metrics import RunMetrics, Validation

TRAINING_WINDOW = 5  # steps that are averaged at either end of training


def summarise(metrics: RunMetrics, run_dir: Path, report_folder: str) -> str:
    """Three short tables; a part without data says so."""
    steps = metrics.steps
    span = f"steps {steps[0]} to {steps[-1]}" if steps else "no step logged"
    return "\n".join(
        [
            f"Run {run_dir}: {span}",
            "",
            "Success (validation with its 95% interval)",
            *_indent(_success(metrics) or ["not measured"]),
            "",
            *_time(metrics),
            "",
            "Files",
            *_indent(_files(run_dir, report_folder) or ["none"]),
        ]
    )


def _success(metrics: RunMetrics) -> list[str]:
    lines = [_validation(validation) for validation in metrics.validations()]
    rates = metrics.series("episode/success_rate").values
    if len(rates):
        window = min(TRAINING_WINDOW, len(rates))
        first, last = rates[:window].mean(), rates[-window:].mean()
        what = f"mean of the first and last {window} steps" if window > 1 else "one step each"
        lines.append(f"training: {first:.1%} -> {last:.1%} ({what})")
    return lines


def _validation(v: Validation) -> str:
    before, after = _rate(v, 0), _rate(v, -1)
    if len(v.steps) == 1:
        return f"{v.task_set} {v.mode}: {before}"
    overlap = v.low[-1] <= v.high[0] and v.low[0] <= v.high[-1]
    note = "; the intervals overlap" if overlap else ""
    return f"{v.task_set} {v.mode}: {before} -> {after}{note}"


def _rate(v: Validation, i: int) -> str:
    text = f"{v.rate[i]:.1%}"
    if np.isfinite(v.low[i]) and np.isfinite(v.high[i]):
        text += f" [{100 * v.low[i]:.1f}, {100 * v.high[i]:.1f}]"
    episodes = f"n {v.n[i]:.0f}, " if np.isfinite(v.n[i]) else ""
    if np.isfinite(v.tasks[i]) and v.tasks[i] != v.n[i]:
        episodes = f"n {v.n[i]:.0f} of {v.tasks[i]:.0f} tasks, "
    return f"{text} ({episodes}step {v.steps[i]})"


def _time(metrics: RunMetrics) -> list[str]:
    steps, phases = metrics.phase_seconds()
    total = sum(seconds.sum() for seconds in phases.values())
    if not phases:
        return ["Time", *_indent(["not measured"])]
    width = max(map(len, phases))
    count = max(1, int((steps > 0).sum()))  # the line of step 0 is the first validation
    lines = [f"Time: {_duration(total)} in {count} steps, {total / count:.1f} s a step"]
    for phase, seconds in phases.items():
        share, mean = seconds.sum() / total, seconds.sum() / count
        lines.append(f"  {phase:<{width}}  {share:6.1%}  {mean:8.2f} s a step")
    return lines


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def _files(run_dir: Path, report_folder: str) -> list[str]:
    known = {
        "metrics": "metrics.jsonl",
        "figures": report_folder,
        "rollouts": "rollouts",
        "configuration": "config.yaml",
        "log": "run.log",
    }
    return [
        f"{what}: {run_dir / name}" for what, name in known.items() if (run_dir / name).exists()
    ]


def _indent(lines: list[str]) -> list[str]:
    return [f"  {line}" for line in lines]
