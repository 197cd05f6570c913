"""The registry refuses duplicates and teaches its names."""

import pytest

from verl.registry import Registry


@pytest.fixture
def estimators() -> Registry:
    registry = Registry("adv_estimator")
    registry.register("grpo")(max)
    registry.register("gae")(min)
    return registry


def test_get_returns_what_was_registered(estimators):
    assert estimators.get("grpo") is max
    assert "gae" in estimators and "grop" not in estimators
    assert estimators.names() == list(estimators) == ["gae", "grpo"]
    assert len(estimators) == 2


def test_register_returns_its_target():
    registry = Registry("thing")
    assert registry.register("a")(max) is max


def test_unknown_name_lists_the_choices(estimators):
    with pytest.raises(ValueError, match="unknown adv_estimator 'grop'; available: gae, grpo"):
        estimators.get("grop")
    with pytest.raises(ValueError, match="available: none"):
        Registry("empty").get("x")


def test_duplicate_is_refused_but_the_same_object_is_not(estimators):
    with pytest.raises(ValueError, match="'grpo' is already registered"):
        estimators.register("grpo")(sum)
    estimators.register("grpo")(max)
    assert estimators.get("grpo") is max
