"""How sure a rate is."""

from __future__ import annotations

import math
from typing import NamedTuple


class Interval(NamedTuple):
    """A 95% confidence interval (for the default z)."""

    low: float
    high: float


def wilson_interval(successes: int, n: int, z: float = 1.96) -> Interval:
    """Wilson score interval of a success rate (E. B. Wilson, JASA 22, 1927).

        centre = (p + z^2/2n) / (1 + z^2/n)
        half   = z * sqrt(p(1-p)/n + z^2/4n^2) / (1 + z^2/n)

    Unlike the normal interval it stays in [0, 1] and does not shrink to a point at 0 or n
    successes. (0, 1) when n is 0: nothing is known.

    Raises:
        ValueError: not 0 <= successes <= n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes={successes} must be between 0 and n={n}")
    if n == 0:
        return Interval(0.0, 1.0)
    rate = successes / n
    scale = 1.0 + z * z / n
    centre = (rate + z * z / (2 * n)) / scale
    half = z * math.sqrt(rate * (1.0 - rate) / n + z * z / (4 * n * n)) / scale
    return Interval(max(0.0, centre - half), min(1.0, centre + half))
