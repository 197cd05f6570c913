"""How much the smoothing term counts, as the run goes on (beta_k of the paper)."""

from __future__ import annotations

import math
from collections.abc import Callable


def paper(step: int, total_steps: int, gamma: float) -> float:
    """beta_k = 1 + exp(-gamma * k / floor(K/2)): from 2 towards 1 (arXiv:2509.22576)."""
    half = max(1, total_steps // 2)  # a run of one step has no half
    return 1.0 + math.exp(-gamma * step / half)


def growing(step: int, total_steps: int, gamma: float) -> float:
    """`paper` run backwards in time: from about 1 up to 2 at the last step."""
    return paper(max(0, total_steps - 1 - step), total_steps, gamma)


def linear(step: int, total_steps: int, gamma: float) -> float:
    """From 2 at the first step straight to 1 at the last; `gamma` has no part in it."""
    return 2.0 - min(1.0, step / max(1, total_steps - 1))


def constant(step: int, total_steps: int, gamma: float) -> float:
    """1 throughout."""
    return 1.0


SCHEDULES: dict[str, Callable[[int, int, float], float]] = {
    "paper": paper,
    "growing": growing,
    "linear": linear,
    "constant": constant,
}
