"""The local report of a run: figures and a summary out of `metrics.jsonl`."""

from __future__ import annotations

import io
import logging
from pathlib import Path

from verl.utils.atomic import atomic_write_bytes
from verl.utils.report.figures import FIGURES
from verl.utils.report.run_metrics import RunMetrics
from verl.utils.report.summary import summarise
from verl.utils.tracker_backends import METRICS_FILE

logger = logging.getLogger(__name__)

REPORT_FOLDER = "report"


def write_report(run_dir: str | Path) -> list[Path]:
    """Draw `<run_dir>/report/*.png`; returns the files. A figure without data is not drawn."""
    metrics = RunMetrics.read(Path(run_dir) / METRICS_FILE)
    written = []
    for name, draw in FIGURES.items():
        figure = draw(metrics)
        if figure is None:
            continue
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=130)
        path = Path(run_dir) / REPORT_FOLDER / f"{name}.png"
        atomic_write_bytes(path, image.getvalue())
        written.append(path)
    if not written:
        logger.warning("nothing to draw: %s holds no metrics", Path(run_dir) / METRICS_FILE)
    return written


def summary_text(run_dir: str | Path) -> str:
    """Success before and after, where the time went, and where the files are."""
    metrics = RunMetrics.read(Path(run_dir) / METRICS_FILE)
    return summarise(metrics, Path(run_dir), REPORT_FOLDER)


__all__ = ["summary_text", "write_report"]
