"""Values of many workers become one number."""

import math

import pytest
import torch

from verl.utils.metric import AggregationType, Metric, reduce_metrics


def test_the_key_names_the_reduction():
    reduced = reduce_metrics(
        {
            "actor/loss": [1.0, 2.0, 6.0],
            "reward/max": [1.0, 5.0],
            "min_length": [3.0, 2.0],
            "actor/minibatch_loss": [1.0, 2.0],  # holds "min", but not as a word
            "terminal": [0.0, 1.0],
            "maximum": [1.0, 3.0],
            "empty": [],
        }
    )
    assert math.isnan(reduced.pop("empty"))
    assert reduced == {
        "actor/loss": 3.0,
        "reward/max": 5.0,
        "min_length": 2.0,
        "actor/minibatch_loss": 1.5,
        "terminal": 0.5,
        "maximum": 2.0,
    }


def test_a_metric_knows_its_reduction():
    total = Metric("sum", [1.0, 2.0])
    total.append(torch.tensor(4.0))
    assert reduce_metrics({"tokens": total}) == {"tokens": 7.0}
    assert total.init_list().values == [] and total.init_list().aggregation is AggregationType.SUM


@pytest.mark.parametrize(
    ("aggregation", "expected"), [("mean", 2.0), ("sum", 6.0), ("min", 1.0), ("max", 3.0)]
)
def test_aggregate(aggregation, expected):
    metric = Metric(AggregationType(aggregation))
    metric.extend(Metric(aggregation, [3.0, 1.0]))
    metric.append(2)
    assert metric.aggregate() == expected
    assert math.isnan(Metric(aggregation).aggregate())


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("sum", 5.0),  # ranks averaged: [2, 3]; 2 + 3
        ("mean", 2.5),
        ("min", 1.0),
        ("max", 4.0),
    ],
)
def test_aggregate_over_ranks(aggregation, expected):
    ranks = [Metric(aggregation, [1.0, 2.0]), Metric(aggregation, [3.0, 4.0])]
    assert Metric.aggregate_dp(ranks) == expected


def test_bad_values_are_refused():
    with pytest.raises(ValueError, match="'median' is not a valid"):
        Metric("median")
    with pytest.raises(ValueError, match=r"not a tensor of \(2,\)"):
        Metric("mean", torch.zeros(2))
    with pytest.raises(ValueError, match="cannot add a sum metric to a mean"):
        Metric("mean").extend(Metric("sum"))
    with pytest.raises(ValueError, match="different numbers of values"):
        Metric.aggregate_dp([Metric("mean", [1.0]), Metric("mean", [1.0, 2.0])])
    with pytest.raises(ValueError, match="aggregate differently"):
        Metric.aggregate_dp([Metric("mean", [1.0]), Metric("sum", [1.0])])


def test_from_dict():
    metrics = Metric.from_dict({"loss": 1.0, "acc": [0.5, 1.0]}, aggregation="mean")
    assert reduce_metrics(metrics) == {"loss": 1.0, "acc": 0.75}
