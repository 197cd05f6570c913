"""What is logged about the sampled tokens of a rollout."""

import pytest
import torch

from verl import DataProto
from verl.trainer.ppo.ray_trainer import token_metrics


def rollout() -> DataProto:
    return DataProto.from_dict(
        {
            "response_mask": torch.tensor([[1, 1, 0]]),
            "rollout_log_probs": torch.tensor([[0.5, 0.2, 0.0]]).log().nan_to_num(neginf=-9.0),
            "old_log_probs": torch.tensor([[0.4, 0.2, 1.0]]).log(),
            "entropys": torch.tensor([[2.0, 0.5, 9.0]]),
        }
    )


def test_the_engines_probabilities_are_compared_with_the_trainers():
    metrics = token_metrics(rollout(), entropy_threshold=None)
    # |0.5 - 0.4| = 0.1 and |0.2 - 0.2| = 0; the third token was not sampled
    assert metrics["training/rollout_probs_diff_mean"] == pytest.approx(0.05, abs=1e-6)
    assert metrics["training/rollout_probs_diff_max"] == pytest.approx(0.1, abs=1e-6)
    assert "training/entropy_above_share" not in metrics


def test_the_share_of_high_entropy_tokens_counts_sampled_tokens():
    metrics = token_metrics(rollout(), entropy_threshold=1.2)
    assert metrics["training/entropy_above_share"] == 0.5  # 2.0 is above, 0.5 is not
