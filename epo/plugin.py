"""EPO as the trainer loads it: a regulariser for the workers, a hook for the driver."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from epo.config import DEFAULT_EMA_DECAY, DEFAULT_WINDOW, EPOConfig, validate
from epo.corridor import Corridor, Level, corridor_around
from epo.history import EntropyHistory, RolloutEntropies, StepEntropy, measure, reference_entropy
from epo.regularizer import EPORegularizer
from epo.schedule import SCHEDULES

logger = logging.getLogger(__name__)

# What is logged here: name, unit, how the values of a step become one, meaning.
METRICS = (
    (
        "epo/entropy",
        "nats",
        "mean",
        "L_H: entropy of the policy that is updated, by trajectories, turns, tokens",
    ),
    (
        "epo/penalty",
        "nats",
        "mean",
        "L_smooth: how far tokens are outside the corridor, times alpha",
    ),
    ("epo/share_below", "share", "mean", "tokens below the corridor, weighted as L_H"),
    ("epo/share_above", "share", "mean", "tokens above the corridor"),
    ("epo/loss", "nats", "mean", "the term added to the loss: -lambda * (L_H - beta * L_smooth)"),
    (
        "epo/entropy_step",
        "nats",
        "-",
        "entropy of the rollout before the update: what the history keeps",
    ),
    ("epo/entropy_turn/<turn>", "nats", "-", "the same of one turn"),
    ("epo/reference", "nats", "-", "entropy of the past that the corridor is around"),
    ("epo/lower", "nats", "-", "lower edge of the corridor"),
    ("epo/upper", "nats", "-", "upper edge"),
    (
        "epo/<reference|lower|upper>_turn/<turn>",
        "nats",
        "-",
        "the same with `epo.reference=per_turn`",
    ),
    ("epo/beta", "1", "-", "beta_k: the weight of L_smooth in this step"),
)


@dataclass(frozen=True)
class EPOPlugin:
    regularizer: EPORegularizer
    hook: EPOHook


def build(config: EPOConfig) -> EPOPlugin:
    """The plugin of one run. The trainer calls it only when `config.enable` is set.

    Raises:
        ValueError: a setting is out of range, unknown or without effect (see `validate`).
    """
    validate(config)
    if config.penalty == "indicator":
        logger.warning(
            "epo.penalty=indicator has zero gradient: it reproduces the published code, and trains "
            "exactly like a plain entropy bonus; use relu to smooth the entropy"
        )
    return EPOPlugin(EPORegularizer(config), EPOHook(config))


class EPOControl:
    """EPO as the trainer chooses it: its options, their check, and the plugin."""

    options = EPOConfig
    validate = staticmethod(validate)
    build = staticmethod(build)


CONTROL = EPOControl()


class EPOHook:
    """Keeps the entropy history and derives each step's corridor from the steps before it.

    One step: `context_state`, whose answer goes to the workers, then `after_step`. Saved with
    `state_dict`, it restores exactly, so a resumed run's losses equal the uninterrupted run's.
    """

    def __init__(self, config: EPOConfig) -> None:
        self._config = config
        self._history = EntropyHistory()
        self._current: tuple[int, Mapping[str, Any]] | None = (
            None  # the step under way and its state
        )

    def context_state(self, step: int, total_steps: int) -> Mapping[str, Any]:
        """`reference`, `lower`, `upper` (None: no smoothing; a tuple: one a turn) and `beta`."""
        corridor = self._corridor(step)
        state: dict[str, Any] = {
            "reference": corridor.reference if corridor else None,
            "lower": corridor.lower if corridor else None,
            "upper": corridor.upper if corridor else None,
            "beta": SCHEDULES[self._config.schedule](step, total_steps, self._config.gamma),
        }
        self._current = (step, state)
        return state

    def _corridor(self, step: int) -> Corridor | None:
        config = self._config
        if step < config.start_step:
            return None
        reference = reference_entropy(
            self._history.before(step),
            config.reference,
            window=DEFAULT_WINDOW if config.window is None else config.window,
            ema_decay=DEFAULT_EMA_DECAY if config.ema_decay is None else config.ema_decay,
        )
        return (
            None
            if reference is None
            else corridor_around(reference, config.kappa_l, config.kappa_r)
        )

    def after_step(self, step: int, observation: RolloutEntropies) -> dict[str, float]:
        """Add the step to the history. Metrics: the step's entropies and its corridor.

        Raises:
            ValueError: the step is already in the history, or an entropy is not finite.
        """
        entry = measure(observation, step, self._config.aggregation)
        if entry is None:
            logger.warning("step %d has no response token: the entropy history skips it", step)
            return {}
        self._history.record(entry)
        if self._config.entropy_distribution_output_file is not None:
            write_history(self._history, Path(self._config.entropy_distribution_output_file))
        state = self._current[1] if self._current and self._current[0] == step else {}
        return _corridor_metrics(state) | _entropy_metrics(entry)

    def state_dict(self) -> dict[str, Any]:
        return {"aggregation": self._config.aggregation, "history": self._history.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError when the saved entropies are means of another kind."""
        saved, wanted = state["aggregation"], self._config.aggregation
        if saved != wanted:
            raise ValueError(
                f"epo.aggregation={wanted}, but the checkpoint's entropies are means of kind "
                f"{saved}; set epo.aggregation={saved} or start a new run"
            )
        self._history.load_state_dict(state["history"])


def _corridor_metrics(state: Mapping[str, Any]) -> dict[str, float]:
    metrics = {}
    for name, level in state.items():
        if isinstance(level, tuple):
            metrics |= {f"epo/{name}_turn/{turn}": value for turn, value in enumerate(level[:-1])}
        if level is not None:
            metrics[f"epo/{name}"] = _overall(level)
    return metrics


def _overall(level: Level) -> float:
    return level[-1] if isinstance(level, tuple) else level


def _entropy_metrics(entry: StepEntropy) -> dict[str, float]:
    turns = {f"epo/entropy_turn/{turn}": mean for turn, mean in entry.turn_means().items()}
    return {"epo/entropy_step": entry.mean, **turns}


def write_history(history: EntropyHistory, path: Path) -> None:
    """One JSON line a step: `step`, `entropy`, and by turn `turn_entropy` and `turn_count`.

    The file mirrors the history, so a resumed run leaves no step twice. Replaced in one move.
    """
    lines = []
    for entry in history.steps:
        means = entry.turn_means()
        record = {
            "step": entry.step,
            "entropy": entry.mean,
            "turn_entropy": [means.get(turn) for turn in range(len(entry.turn_totals))],
            "turn_count": entry.turn_counts,
        }
        lines.append(json.dumps(record) + "\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text("".join(lines), encoding="utf-8")
    os.replace(temporary, path)
