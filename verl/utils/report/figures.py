"""The figures of the report. Each takes the metrics and returns a figure, or None without data.

Colours: Paul Tol's muted scheme and cividis, which people with colour-blindness can tell apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from verl.utils.report.run_metrics import (
    OTHER_PHASES,
    OUTSIDE_STEP,
    TURN_ENTROPY,
    RunMetrics,
    Series,
    Validation,
)

PALETTE = (
    "#332288",
    "#CC6677",
    "#44AA99",
    "#DDCC77",
    "#AA4499",
    "#88CCEE",
    "#117733",
    "#999933",
    "#882255",
)
GREY = "#9A9A9A"
LIGHT_GREY = "#DDDDDD"
SMALL_PHASE = 0.01  # share of the time below which a phase is drawn under `other`
# Panels of the optimisation figure: title, y label, (legend, names in order of preference).
PANELS = (
    (
        "Reward",
        "reward of an episode",
        [("mean of the batch", ("episode/reward/mean", "critic/score/mean"))],
    ),
    ("Episode length", "turns", [("mean of the batch", ("episode/length/mean",))]),
    (
        "Divergence of the policy",
        "KL (nats a token)",
        [
            ("from the sampling policy", ("actor/ppo_kl",)),
            ("from the reference", ("actor/kl_loss",)),
        ],
    ),
    (
        "Gradient norm before clipping",
        "L2 norm",
        [("actor", ("actor/grad_norm",)), ("critic", ("critic/grad_norm",))],
    ),
)


def success_figure(metrics: RunMetrics) -> Figure | None:
    """Training success by step; validation with its 95% interval, sampled and greedy."""
    training = metrics.series("episode/success_rate")
    validations = metrics.validations()
    if len(training.steps) == 0 and not validations:
        return None
    figure, (axes,) = _new_figure(1, width=8.5, height=4.6)
    if len(training.steps):
        axes.plot(*training, color=LIGHT_GREY, linewidth=1.2, marker=_marker(training))
        axes.plot(*_smooth(training), color=GREY, linewidth=2, label="training batch, smoothed")
    task_sets = sorted({v.task_set for v in validations})
    for v in validations:
        _draw_validation(axes, v, PALETTE[task_sets.index(v.task_set) % len(PALETTE)])
    _finish(axes, "Success", "episodes solved")
    axes.set_ylim(-0.02, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0))
    return figure


def _draw_validation(axes: Axes, v: Validation, colour: str) -> None:
    greedy = v.mode == "greedy"
    axes.errorbar(
        v.steps,
        v.rate,
        # nan, where there is no interval, draws no bar
        yerr=np.maximum([v.rate - v.low, v.high - v.rate], 0.0),
        color=colour,
        linestyle="--" if greedy else "-",
        marker="s" if greedy else "o",
        markerfacecolor="white" if greedy else colour,
        markersize=5,
        capsize=3,
        elinewidth=1,
        label=f"validation {v.task_set}, {v.mode} (95% interval)",
    )


def entropy_figure(metrics: RunMetrics) -> Figure | None:
    """Entropy against its corridor, and a map of the entropy of every turn at every step."""
    entropy = metrics.series("epo/entropy_step", "actor/entropy")
    turns = {int(match["turn"]): match[0] for match in metrics.matching(TURN_ENTROPY)}
    if len(entropy.steps) == 0:
        return None
    panels = 2 if turns else 1
    figure, axes = _new_figure(panels, width=8.5, height=3.6 * panels)
    has_corridor = _draw_corridor(axes[0], metrics)
    axes[0].plot(*entropy, color=PALETTE[0], linewidth=2, marker=_marker(entropy), label="policy")
    title = "Policy entropy and its corridor" if has_corridor else "Policy entropy"
    _finish(axes[0], title, "entropy (nats a token)")
    axes[0].set_ylim(bottom=0)
    if turns:
        _draw_turn_map(figure, axes[1], metrics, turns)
        axes[1].set_xlim(axes[0].get_xlim())
    return figure


def _draw_corridor(axes: Axes, metrics: RunMetrics) -> bool:
    """Whether there was one to draw."""
    upper, reference = metrics.series("epo/upper"), metrics.series("epo/reference")
    if len(upper.steps) == 0:
        return False
    lower = np.nan_to_num(metrics.at("epo/lower", upper.steps))
    axes.fill_between(
        upper.steps,
        lower,
        upper.values,
        color=PALETTE[5],
        alpha=0.35,
        linewidth=0,
        label="corridor",
    )
    axes.plot(*reference, color=PALETTE[1], linestyle="--", label="reference (past steps)")
    return True


def _draw_turn_map(figure: Figure, axes: Axes, metrics: RunMetrics, turns: dict[int, str]) -> None:
    steps = np.unique(np.concatenate([metrics.series(name).steps for name in turns.values()]))
    columns = np.arange(steps.min(), steps.max() + 1)
    rows = [
        metrics.at(turns[t], columns) if t in turns else np.full(len(columns), np.nan)
        for t in range(max(turns) + 1)
    ]
    image = axes.imshow(
        np.ma.masked_invalid(rows),
        aspect="auto",
        origin="lower",
        interpolation="nearest",
        cmap="cividis",
        extent=(columns[0] - 0.5, columns[-1] + 0.5, -0.5, max(turns) + 0.5),
    )
    _finish(axes, "Entropy of each turn (white: nobody played it)", "turn")
    axes.grid(visible=False)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    figure.colorbar(image, ax=axes, label="entropy (nats a token)", pad=0.01)


def timing_figure(metrics: RunMetrics) -> Figure | None:
    """Seconds of each phase of each step, stacked."""
    steps, phases = metrics.phase_seconds()
    if not phases:
        return None
    total = sum(seconds.sum() for seconds in phases.values())
    shown = _merge_small_phases(phases, SMALL_PHASE * total)
    figure, (axes,) = _new_figure(1, width=8.5, height=4.6)
    bottom = np.zeros(len(steps))
    colours = cycle(PALETTE)
    for phase, seconds in shown.items():
        colour = LIGHT_GREY if phase == OTHER_PHASES else next(colours)
        label = f"{phase} ({seconds.sum() / total:.0%})"
        # Bars without gaps: a stacked area that also shows a single step and a single spike.
        axes.bar(steps, seconds, width=1.0, bottom=bottom, color=colour, linewidth=0, label=label)
        bottom += seconds
    _finish(axes, f"Where the time goes ({total / 60:.1f} min in all)", "seconds a step")
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(
        handles[::-1], labels[::-1], frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0)
    )
    return figure


def _merge_small_phases(phases: dict[str, np.ndarray], least: float) -> dict[str, np.ndarray]:
    """The phases of every step from the bottom up, the rest of the step, then what comes rarely."""
    regular = {p: s for p, s in phases.items() if p not in (*OUTSIDE_STEP, OTHER_PHASES)}
    shown = {p: s for p, s in regular.items() if s.sum() >= least}
    rest = [s for p, s in regular.items() if p not in shown]
    rest += [phases[OTHER_PHASES]] if OTHER_PHASES in phases else []
    if rest:
        shown[OTHER_PHASES] = np.sum(rest, axis=0)
    return shown | {p: phases[p] for p in OUTSIDE_STEP if p in phases}


def optimisation_figure(metrics: RunMetrics) -> Figure | None:
    """Reward, episode length, divergence and gradient norm; only what was measured."""
    panels = []
    for title, label, lines in PANELS:
        drawn = [(name, metrics.series(*names)) for name, names in lines]
        drawn = [(name, series) for name, series in drawn if len(series.steps)]
        if drawn:
            panels.append((title, label, drawn))
    if not panels:
        return None
    figure, all_axes = _new_figure(
        len(panels), width=10, height=3.1 * -(-len(panels) // 2), columns=2
    )
    for axes, (title, label, drawn) in zip(all_axes, panels, strict=True):
        for i, (name, series) in enumerate(drawn):
            axes.plot(*series, color=PALETTE[i], alpha=0.3, linewidth=1, marker=_marker(series))
            axes.plot(*_smooth(series), color=PALETTE[i], linewidth=2, label=f"{name}, smoothed")
        _finish(axes, title, label)
    return figure


def _new_figure(
    panels: int, width: float, height: float, columns: int = 1
) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    columns = min(columns, panels)
    rows = -(-panels // columns)
    return figure, [figure.add_subplot(rows, columns, i + 1) for i in range(panels)]


def _finish(axes: Axes, title: str, y_label: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel("training step")
    axes.set_ylabel(y_label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color=LIGHT_GREY, linewidth=0.6)
    axes.set_axisbelow(True)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=9)


def _smooth(series: Series, weight: float = 0.8) -> Series:
    """Exponential moving average, unbiased at the start."""
    smoothed, total, norm = [], 0.0, 0.0
    for value in series.values:
        total = weight * total + value
        norm = weight * norm + 1.0
        smoothed.append(total / norm)
    return Series(series.steps, np.array(smoothed))


def _marker(series: Series) -> str:
    """A line through few points shows them; a single point needs a marker to be seen at all."""
    return "o" if len(series.steps) == 1 else ""


FIGURES: dict[str, Callable[[RunMetrics], Figure | None]] = {
    "success": success_figure,
    "entropy": entropy_figure,
    "timing": timing_figure,
    "optimisation": optimisation_figure,
}
