"""Numbers that workers report, and how they become one number a step."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any

import numpy as np
import torch


class AggregationType(Enum):
    """How the values of one metric become one."""

    MEAN = "mean"
    SUM = "sum"
    MIN = "min"
    MAX = "max"


_REDUCE: dict[AggregationType, Callable[[Any], Any]] = {
    AggregationType.MEAN: np.mean,
    AggregationType.SUM: np.sum,
    AggregationType.MIN: np.min,
    AggregationType.MAX: np.max,
}


class Metric:
    """The values of one metric, collected micro-batch by micro-batch on one rank."""

    def __init__(self, aggregation: str | AggregationType, value: Any = None) -> None:
        """`value`, if given, is the first value or a list of first values.

        Raises:
            ValueError: the aggregation is unknown, or a value is not a scalar.
        """
        self.aggregation = AggregationType(aggregation)
        self.values: list[float] = []
        if value is not None:
            self.append(value)

    def append(self, value: Any) -> None:
        """Add a number, a 0-d tensor, or all values of a list or another Metric."""
        if isinstance(value, Metric | list | tuple):
            self.extend(value)
            return
        if isinstance(value, torch.Tensor):
            if value.numel() != 1 or value.ndim != 0:
                raise ValueError(f"a metric is a scalar, not a tensor of {tuple(value.shape)}")
            value = value.detach().item()
        self.values.append(value)

    def extend(self, values: Metric | Iterable[Any]) -> None:
        """Add several values.

        Raises:
            ValueError: the other Metric is aggregated in another way.
        """
        if isinstance(values, Metric):
            if values.aggregation != self.aggregation:
                raise ValueError(
                    f"cannot add a {values.aggregation.value} metric to a {self.aggregation.value}"
                )
            values = values.values
        for value in values:
            self.append(value)

    def aggregate(self) -> float:
        """One number; NaN if there are no values."""
        return _REDUCE[self.aggregation](self.values) if self.values else float("nan")

    @classmethod
    def aggregate_dp(cls, metrics: list[Metric]) -> float:
        """One number for all data-parallel ranks.

        Sums are averaged over the ranks, because each rank's loss is scaled by their number.

        Raises:
            ValueError: the ranks differ in aggregation, or in the number of values to average.
        """
        kinds = {metric.aggregation for metric in metrics}
        if len(kinds) != 1:
            raise ValueError(f"the ranks aggregate differently: {sorted(k.value for k in kinds)}")
        kind = kinds.pop()
        if kind in (AggregationType.MIN, AggregationType.MAX):
            return _REDUCE[kind]([value for metric in metrics for value in metric.values])
        counts = {len(metric.values) for metric in metrics}
        if len(counts) != 1:
            raise ValueError(f"the ranks report different numbers of values: {sorted(counts)}")
        return _REDUCE[kind](np.mean([metric.values for metric in metrics], axis=0))

    @classmethod
    def from_dict(
        cls, data: dict[str, Any], aggregation: str | AggregationType
    ) -> dict[str, Metric]:
        """A Metric for each entry of `data`, all aggregated alike."""
        return {key: cls(aggregation, value) for key, value in data.items()}

    def init_list(self) -> Metric:
        """An empty Metric that is aggregated alike."""
        return Metric(self.aggregation)


def _aggregation_of(key: str) -> AggregationType:
    # Whole words only: "minibatch_loss" and "terminal" are means.
    words = re.split(r"[^a-z0-9]+", key.lower())
    if "max" in words:
        return AggregationType.MAX
    return AggregationType.MIN if "min" in words else AggregationType.MEAN


def reduce_metrics(metrics: dict[str, list[Any] | Metric]) -> dict[str, Any]:
    """One number for each metric.

    Lists are averaged, unless a word of the key is ``max`` or ``min`` (``grad_norm/max``,
    ``min_reward``). A Metric knows its own aggregation. An empty list gives NaN.
    """
    reduced = {}
    for key, values in metrics.items():
        metric = values if isinstance(values, Metric) else Metric(_aggregation_of(key), values)
        reduced[key] = metric.aggregate()
    return reduced
