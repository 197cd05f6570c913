import inspect
from enum import Enum

import pytest

from verl.algorithms.estimators import ESTIMATORS
from verl.algorithms.policy_losses import POLICY_LOSSES
from verl.trainer.ppo import core_algos


@pytest.fixture
def registries():
    """The names that a test registers are gone after it."""
    before = [dict(registry) for registry in (ESTIMATORS, POLICY_LOSSES)]
    yield
    for registry, entries in zip((ESTIMATORS, POLICY_LOSSES), before, strict=True):
        registry.clear()
        registry.update(entries)


def test_every_public_name_exists():
    missing = [name for name in core_algos.__all__ if not hasattr(core_algos, name)]
    assert missing == []


def test_every_estimator_of_the_enum_is_registered():
    assert {e.value for e in core_algos.AdvantageEstimator} == set(ESTIMATORS)
    assert core_algos.AdvantageEstimator.GAE == "gae"
    assert isinstance(core_algos.AdvantageEstimator.GAE, str)


def test_lookup_by_name_and_by_enum():
    grpo = core_algos.get_adv_estimator_fn("grpo")
    assert grpo is core_algos.compute_grpo_outcome_advantage
    assert core_algos.get_adv_estimator_fn(core_algos.AdvantageEstimator.GRPO) is grpo
    assert core_algos.get_policy_loss_fn("vanilla") is core_algos.compute_policy_loss_vanilla


def test_unknown_names_teach():
    with pytest.raises(ValueError, match=r"grop; available: gae, gpg, .*grpo.*rloo"):
        core_algos.get_adv_estimator_fn("grop")
    with pytest.raises(ValueError, match=r"nope; available: cispo, geo_mean, gpg, gspo, vanilla"):
        core_algos.get_policy_loss_fn("nope")


@pytest.mark.usefixtures("registries")
def test_register_adv_est():
    def zeros(token_level_rewards, response_mask, **_):
        return token_level_rewards * 0, token_level_rewards * 0

    class Mine(Enum):
        OTHER = "other"

    assert core_algos.register_adv_est("zeros")(zeros) is zeros
    assert core_algos.register_adv_est("zeros")(zeros) is zeros  # the same again is harmless
    assert core_algos.register_adv_est(Mine.OTHER)(zeros) is zeros
    assert core_algos.get_adv_estimator_fn("other") is zeros
    with pytest.raises(ValueError, match="advantage estimator 'gae' is already registered"):
        core_algos.register_adv_est("gae")(zeros)


@pytest.mark.usefixtures("registries")
def test_register_policy_loss():
    @core_algos.register_policy_loss("mine")
    def mine(*args, **kwargs):
        return None

    assert core_algos.get_policy_loss_fn("mine") is mine
    with pytest.raises(ValueError, match="policy loss 'mine' is already registered"):
        core_algos.register_policy_loss("mine")(lambda: None)


@pytest.mark.parametrize(
    ("name", "leading"),
    [
        (
            "compute_gae_advantage_return",
            ["token_level_rewards", "values", "response_mask", "gamma", "lam"],
        ),
        (
            "compute_grpo_outcome_advantage",
            [
                *["token_level_rewards", "response_mask", "index", "epsilon"],
                *["norm_adv_by_std_in_grpo", "config"],
            ],
        ),
        (
            "compute_policy_loss",
            [
                *["old_log_prob", "log_prob", "advantages", "response_mask", "cliprange"],
                *["cliprange_low", "cliprange_high", "clip_ratio_c", "loss_agg_mode"],
            ],
        ),
        (
            "compute_policy_loss_vanilla",
            [
                *["old_log_prob", "log_prob", "advantages", "response_mask"],
                *["loss_agg_mode", "config", "rollout_is_weights"],
            ],
        ),
        (
            "compute_value_loss",
            ["vpreds", "returns", "values", "response_mask", "cliprange_value", "loss_agg_mode"],
        ),
        (
            "agg_loss",
            [
                *["loss_mat", "loss_mask", "loss_agg_mode", "dp_size", "batch_num_tokens"],
                *["global_batch_size", "loss_scale_factor"],
            ],
        ),
        ("kl_penalty", ["logprob", "ref_logprob", "kl_penalty"]),
        ("compute_remax_outcome_advantage", ["token_level_rewards", "reward_baselines"]),
    ],
)
def test_argument_names_are_those_of_verl(name, leading):
    parameters = list(inspect.signature(getattr(core_algos, name)).parameters)
    assert parameters[: len(leading)] == leading


def test_every_policy_loss_has_the_signature_of_vanilla():
    vanilla = list(inspect.signature(core_algos.compute_policy_loss_vanilla).parameters)
    for fn in POLICY_LOSSES.values():
        assert list(inspect.signature(fn).parameters) == vanilla
