"""What is logged about the sampled tokens of a rollout, and the weights they get."""

import numpy as np
import pytest
import torch

from verl import DataProto
from verl.config.algorithm import AlgorithmConfig
from verl.trainer.ppo.advantage_stage import compare_with_rollout
from verl.trainer.ppo.metrics import sampling_metrics


def rollout() -> DataProto:
    """Two turn rows of one trajectory. Ratios: 4/5, 1 and 3/2."""
    return DataProto.from_single_dict(
        {
            "response_mask": torch.tensor([[1, 1, 0], [1, 0, 0]]),
            "rollout_log_probs": torch.tensor([[0.5, 0.2, 0.3], [0.2, 0.3, 0.3]]).log(),
            "old_log_probs": torch.tensor([[0.4, 0.2, 1.0], [0.3, 1.0, 1.0]]).log(),
            "entropys": torch.tensor([[2.0, 0.5, 9.0], [0.1, 9.0, 9.0]]),
            "traj_uid": np.array(["t", "t"], dtype=object),
            "weight_version": np.array([3, 4]),
        }
    )


def test_the_engines_probabilities_are_compared_with_the_trainers():
    batch = rollout()
    metrics = compare_with_rollout(batch, AlgorithmConfig())
    # |0.5 - 0.4| = 0.1, |0.2 - 0.2| = 0, |0.2 - 0.3| = 0.1; the other tokens were not sampled
    assert metrics["training/rollout_probs_diff_mean"] == pytest.approx(0.2 / 3, abs=1e-6)
    assert metrics["training/rollout_probs_diff_max"] == pytest.approx(0.1, abs=1e-6)
    # (0.8 + 1 + 1.5)^2 / (3 * (0.64 + 1 + 2.25)) = 10.89 / 11.67
    assert metrics["training/rollout_ess"] == pytest.approx(10.89 / 11.67, abs=1e-6)
    assert "rollout_is_weights" not in set(batch.batch.keys())
    assert "training/rollout_correction_clipped" not in metrics


@pytest.mark.parametrize(
    ("mode", "first", "second", "clipped"),
    [
        ("token_tis", [0.8, 1.0], [1.1], 1 / 3),  # 1.5 is capped
        ("sequence_tis", [1.1, 1.1], [1.1], 1.0),  # 0.8 * 1 * 1.5 = 1.2 is capped
        ("token_mask", [0.0, 1.0], [0.0], 2 / 3),  # 0.8 and 1.5 are outside
    ],
)
def test_a_correction_adds_weights_over_the_whole_trajectory(mode, first, second, clipped):
    batch = rollout()
    bounds = {"rollout_correction_max": 1.1, "rollout_correction_min": 0.9}
    config = AlgorithmConfig(rollout_correction=mode, **bounds)
    metrics = compare_with_rollout(batch, config)
    weights = batch.batch["rollout_is_weights"]
    assert weights[0, :2].tolist() == pytest.approx(first)
    assert weights[1, :1].tolist() == pytest.approx(second)
    assert metrics["training/rollout_correction_clipped"] == pytest.approx(clipped)


def test_the_age_of_the_weights_is_counted_in_updates():
    metrics = sampling_metrics(rollout(), step=4, entropy_threshold=None)
    assert metrics == {"training/weight_age": 0.5}  # ages 1 and 0


def test_the_share_of_high_entropy_tokens_counts_sampled_tokens():
    metrics = sampling_metrics(rollout(), step=4, entropy_threshold=1.2)
    # 2.0 is above, 0.5 and 0.1 are not
    assert metrics["training/entropy_above_share"] == pytest.approx(1 / 3)
