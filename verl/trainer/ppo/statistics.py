"""How sure a rate is."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable
from typing import NamedTuple


class Interval(NamedTuple):
    """A 95% confidence interval (for the default z)."""

    low: float
    high: float


def success_interval(outcomes: Iterable[tuple[Hashable, bool]], z: float = 1.96) -> Interval:
    """Interval of the success rate of episodes, each a (task, solved) pair.

    Episodes of one task are alike, so a task is one independent draw and not one for each of its
    episodes. With s_t of n_t episodes of task t solved, T tasks, n episodes and the rate p,

        deff = sum_t (s_t - p n_t)^2 / (n p (1 - p))

    is by how much the cluster-robust variance of p is larger than that of n independent episodes
    (L. Kish, Survey Sampling, 1965), and Wilson's interval is taken for n / deff episodes, at most
    n. With one episode a task this is Wilson's interval; k equal ones (greedy) count once.

    In `deff` there are two more tasks of n / T episodes, one solved by all and one by none: few
    tasks, or a rate near 0 or 1, say little of how alike the episodes of a task are.
    """
    by_task: dict[Hashable, list[bool]] = defaultdict(list)
    for task, solved in outcomes:
        by_task[task].append(solved)
    counts = [(float(sum(solved)), float(len(solved))) for solved in by_task.values()]
    successes, n = (sum(column) for column in zip(*counts, strict=True)) if counts else (0.0, 0.0)
    if n == 0:
        return wilson_interval(0, 0, z)
    mean_size = n / len(counts)
    effective = min(n, n / _design_effect([*counts, (mean_size, mean_size), (0.0, mean_size)]))
    return wilson_interval(successes / n * effective, effective, z)


def _design_effect(counts: list[tuple[float, float]]) -> float:
    """`counts`: (successes, episodes) of each task, neither all nor no episode solved."""
    successes, n = (sum(column) for column in zip(*counts, strict=True))
    rate = successes / n
    return sum((s - rate * size) ** 2 for s, size in counts) / (n * rate * (1 - rate))


def wilson_interval(successes: float, n: float, z: float = 1.96) -> Interval:
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
