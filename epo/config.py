"""`epo.*`: the schema, the defaults and the documentation of EPO's settings."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from epo.corridor import PENALTIES
from epo.history import AGGREGATIONS, REFERENCES
from epo.schedule import SCHEDULES

DEFAULT_WINDOW = 10
DEFAULT_EMA_DECAY = 0.9

NON_NEGATIVE = ("entropy_coeff", "kappa_l", "kappa_r", "alpha", "gamma", "from_turn", "start_step")


@dataclass
class EPOConfig:
    """Entropy regularisation inside a corridor around the policy's past entropy (arXiv:2509.22576).

    The paper uses alpha 0.05 on ScienceWorld and 0.1 on ALFWorld, and a corridor without a floor
    (0 / 2); a two-sided one is 0.5 / 1.5.
    """

    enable: bool = False  # false: nothing of EPO is loaded, and the loss is the plain trainer's
    entropy_coeff: float = 0.001  # lambda: weight of the whole term
    kappa_l: float = 0.0  # the corridor's floor is kappa_l * reference; 0: no floor
    kappa_r: float = 2.0  # the corridor's ceiling is kappa_r * reference
    alpha: float = 0.05  # weight of the penalty inside the term
    gamma: float = 3.0  # how fast beta falls (or grows) over half of the run
    reference: str = "past_mean"  # past_mean | sliding_window | ema | per_turn
    window: int | None = None  # sliding_window only: past steps in the mean; default 10
    ema_decay: float | None = None  # ema only: weight of the past; default 0.9
    penalty: str = "relu"  # relu | indicator: the published code's constant, without a gradient
    schedule: str = "paper"  # paper: beta falls from 2 to 1 | growing | constant (1) | linear
    aggregation: str = "trajectory"  # trajectory: means of tokens, turns, trajectories | token_mean
    from_turn: int = 0  # the penalty spares earlier turns; the entropy bonus does not
    start_step: int = 0  # before it, only the entropy bonus acts; the history is kept all the same
    entropy_distribution_output_file: str | None = None  # JSON lines: the entropies of each step


def validate(config: EPOConfig) -> None:
    """Raises ValueError with one sentence that says what to change."""
    _check_choice("reference", config.reference, REFERENCES)
    _check_choice("penalty", config.penalty, PENALTIES)
    _check_choice("schedule", config.schedule, SCHEDULES)
    _check_choice("aggregation", config.aggregation, AGGREGATIONS)
    for name in NON_NEGATIVE:
        value = getattr(config, name)
        if not 0 <= value < float("inf"):  # also refuses nan
            raise ValueError(f"epo.{name}={value} is not a finite number >= 0; set it to 0 or more")
    if config.kappa_l > config.kappa_r:
        raise ValueError(
            f"epo.kappa_l={config.kappa_l} is above epo.kappa_r={config.kappa_r}, so no entropy "
            "lies inside; give the floor the smaller factor, for example 0.5 and 1.5"
        )
    _check_reference_settings(config)


def _check_choice(name: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise ValueError(f"unknown epo.{name} '{value}'; choose one of: {', '.join(choices)}")


def _check_reference_settings(config: EPOConfig) -> None:
    for name, kind in (("window", "sliding_window"), ("ema_decay", "ema")):
        value = getattr(config, name)
        if value is not None and config.reference != kind:
            raise ValueError(
                f"epo.{name}={value} has no effect with epo.reference={config.reference}; "
                f"remove it or set epo.reference={kind}"
            )
    if config.window is not None and config.window < 1:
        raise ValueError(f"epo.window={config.window} holds no step; set it to at least 1")
    if config.ema_decay is not None and not 0 <= config.ema_decay < 1:
        raise ValueError(
            f"epo.ema_decay={config.ema_decay} is not in [0, 1), where 1 would never move; "
            f"use for example {DEFAULT_EMA_DECAY}"
        )
