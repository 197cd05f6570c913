"""Numbers that say how several of them become one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean


@dataclass(frozen=True)
class Metric(ABC):
    """One of many values of a metric; its class reduces them to one number."""

    value: float

    @staticmethod
    @abstractmethod
    def reduce(values: Sequence[float]) -> float: ...


class Mean(Metric):
    @staticmethod
    def reduce(values: Sequence[float]) -> float:
        return fmean(values)


class Sum(Metric):
    @staticmethod
    def reduce(values: Sequence[float]) -> float:
        return sum(values)


class Max(Metric):
    @staticmethod
    def reduce(values: Sequence[float]) -> float:
        return max(values)


def reduced(records: Iterable[Mapping[str, Metric]]) -> dict[str, float]:
    """One number for each name, of all the records that have it.

    Raises:
        ValueError: a metric is reduced in two ways.
    """
    kinds: dict[str, type[Metric]] = {}
    values: dict[str, list[float]] = {}
    for record in records:
        for name, metric in record.items():
            kind = kinds.setdefault(name, type(metric))
            if type(metric) is not kind:
                ways = f"{kind.__name__} and {type(metric).__name__}"
                raise ValueError(f"metric '{name}' is reduced in two ways: {ways}")
            values.setdefault(name, []).append(metric.value)
    return {name: kinds[name].reduce(values[name]) for name in values}
