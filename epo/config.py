"""`epo.*`: the schema, the defaults and the documentation of EPO's settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from epo.corridor import PENALTIES
from epo.history import AGGREGATIONS, REFERENCES
from epo.schedule import SCHEDULES

DEFAULT_WINDOW = 10
DEFAULT_EMA_DECAY = 0.9

T = TypeVar("T")


def setting(default: T, doc: str, **limits: Any) -> T:
    """A field with its sentence and limits as metadata: choices, least, below."""
    return field(default=default, metadata={"doc": doc, **limits})


@dataclass
class EPOConfig:
    """Entropy regularisation inside a corridor around the policy's past entropy (arXiv:2509.22576).

    The paper uses alpha 0.05 on ScienceWorld and 0.1 on ALFWorld, and a corridor without a floor
    (0 / 2); a two-sided one is 0.5 / 1.5.
    """

    enable: bool = setting(
        False, "false: nothing of EPO is loaded, and the loss is the plain trainer's"
    )
    entropy_coeff: float = setting(0.001, "lambda: weight of the whole term", least=0)
    kappa_l: float = setting(
        0.0, "the corridor's floor is kappa_l * reference; 0: no floor", least=0
    )
    kappa_r: float = setting(2.0, "the corridor's ceiling is kappa_r * reference", least=0)
    alpha: float = setting(0.05, "weight of the penalty inside the term", least=0)
    gamma: float = setting(3.0, "how fast beta falls (or grows) over half of the run", least=0)
    reference: str = setting(
        "past_mean",
        "what the corridor lies around: the mean entropy of all past steps, of the last ones, "
        "their moving average, or a mean for each turn",
        choices=REFERENCES,
    )
    window: int | None = setting(
        None, "sliding_window only: past steps in the mean; default 10", least=1
    )
    ema_decay: float | None = setting(
        None,
        "ema only: weight of the past, which never moves with 1; default 0.9",
        least=0,
        below=1,
    )
    penalty: str = setting(
        "relu",
        "outside the corridor: relu grows with the distance; indicator is the published code's "
        "constant, without a gradient",
        choices=tuple(PENALTIES),
    )
    schedule: str = setting(
        "paper",
        "beta, which weighs the penalty: falls from 2 to 1 (paper, linear), grows to 2, or is 1",
        choices=tuple(SCHEDULES),
    )
    aggregation: str = setting(
        "trajectory",
        "trajectory: mean over trajectories of means over turns of means over tokens",
        choices=AGGREGATIONS,
    )
    from_turn: int = setting(
        0, "the penalty spares earlier turns; the entropy bonus does not", least=0
    )
    start_step: int = setting(
        0, "before it, only the entropy bonus acts; the history is kept all the same", least=0
    )
    entropy_distribution_output_file: str | None = setting(
        None, "JSON lines: the entropies of each step", harmless=True
    )


def validate(config: EPOConfig) -> None:
    """Raises ValueError with one sentence that says what to change."""
    for entry in fields(config):
        _check_limits(entry.name, getattr(config, entry.name), entry.metadata)
    if config.kappa_l > config.kappa_r:
        raise ValueError(
            f"epo.kappa_l={config.kappa_l} is above epo.kappa_r={config.kappa_r}, so no entropy "
            "lies inside; give the floor the smaller factor, for example 0.5 and 1.5"
        )
    _check_reference_settings(config)


def _check_limits(name: str, value: Any, limits: Mapping[str, Any]) -> None:
    if "choices" in limits and value not in limits["choices"]:
        choices = ", ".join(limits["choices"])
        raise ValueError(f"epo.{name}={value} is unknown; available: {choices}")
    least, below = limits.get("least"), limits.get("below", math.inf)
    if least is not None and value is not None and not least <= value < below:  # refuses nan too
        finite = f"at least {least} and below {below}"
        accepted = f"a finite number of at least {least}" if below == math.inf else finite
        raise ValueError(f"epo.{name}={value} makes no sense; it has to be {accepted}")


def _check_reference_settings(config: EPOConfig) -> None:
    for name, kind in (("window", "sliding_window"), ("ema_decay", "ema")):
        value = getattr(config, name)
        if value is not None and config.reference != kind:
            raise ValueError(
                f"epo.{name}={value} has no effect with epo.reference={config.reference}; "
                f"remove it or set epo.reference={kind}"
            )
