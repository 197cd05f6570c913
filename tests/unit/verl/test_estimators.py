"""What an estimator states of itself, and what follows from it for one of the user's own."""

import sys
from types import ModuleType

import pytest
import torch

from verl.algorithms.advantages import find_estimator
from verl.algorithms.estimators import (
    ESTIMATORS,
    INPUTS,
    compares_episodes,
    estimator,
    needed_inputs,
)
from verl.algorithms.policy_losses import chosen_reduction, find_policy_loss
from verl.config.algorithm import AlgorithmConfig
from verl.utils.errors import UserError


@pytest.fixture
def own(monkeypatch) -> ModuleType:
    """An importable module of the user's."""
    module = ModuleType("own_algorithms")
    monkeypatch.setitem(sys.modules, "own_algorithms", module)
    return module


def plain(token_level_rewards, response_mask, **_):
    return token_level_rewards, token_level_rewards


def test_built_in_estimators_say_who_compares_and_who_reads_values():
    alone = {name for name, function in ESTIMATORS.items() if not compares_episodes(function)}
    assert alone == {"gae", "reinforce_plus_plus"}
    critics = {name for name, f in ESTIMATORS.items() if "values" in needed_inputs(f)}
    assert critics == {"gae"}


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_every_listed_estimator_can_be_fed(name):
    assert needed_inputs(ESTIMATORS[name]) <= set(INPUTS)


def test_an_own_estimator_needs_what_it_takes_without_a_default(own):
    own.reads_values = lambda token_level_rewards, response_mask, values, **_: (values, values)
    own.plain = plain
    assert AlgorithmConfig(adv_estimator="own_algorithms:reads_values").needs_critic
    assert not AlgorithmConfig(adv_estimator="own_algorithms:plain").needs_critic


def test_an_own_estimator_compares_episodes_only_if_it_says_so(own):
    own.plain = plain
    own.compares = estimator(compares_episodes=True)(lambda **_: None)
    assert not compares_episodes(find_estimator("own_algorithms:plain"))
    assert compares_episodes(find_estimator("own_algorithms:compares"))
    assert "own_algorithms:compares" not in ESTIMATORS


def test_a_loss_is_found_by_import_path_and_any_reduction_will_do(own):
    own.loss = lambda *arguments, **options: (torch.zeros(()), {})
    assert find_policy_loss("own_algorithms:loss") is own.loss
    assert chosen_reduction(own.loss, None) == "token-mean"
    assert chosen_reduction(own.loss, "seq-mean-token-sum") == "seq-mean-token-sum"


def test_a_loss_that_is_defined_with_a_reduction_keeps_it():
    assert chosen_reduction(find_policy_loss("gspo"), None) == "seq-mean-token-mean"
    with pytest.raises(UserError, match=r"loss_mode=gsop is unknown; available: vanilla, gspo"):
        find_policy_loss("gsop")
