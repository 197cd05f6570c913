"""What a training step logs about its batch and its cost, and how many numbers become one."""

import numpy as np
import pytest
import torch

from verl.protocol import DataProto
from verl.trainer.ppo.metrics import cost_metrics, data_metrics
from verl.utils.metrics import Max, Mean, Sum, reduced


def test_a_metric_says_how_its_values_become_one():
    step, other = (
        {"loss": Mean(1.0), "skipped": Sum(0.0), "memory": Max(4.0)},
        {"loss": Mean(4.0), "skipped": Sum(1.0), "memory": Max(3.0), "late": Mean(7.0)},
    )
    assert reduced([step, other, {"skipped": Sum(1.0)}]) == {
        "loss": 2.5,
        "skipped": 2.0,
        "memory": 4.0,
        "late": 7.0,
    }
    assert reduced([]) == {}


def test_a_metric_is_reduced_in_one_way():
    with pytest.raises(ValueError, match="'loss' is reduced in two ways: Mean and Sum"):
        reduced([{"loss": Mean(1.0)}, {"loss": Sum(1.0)}])


def make_batch():
    """Two rows of trajectory a, one of b, and a padding row. Prompt width 2, response width 2."""
    scores = torch.tensor([[0.0, 4.0], [0.0, 2.0], [0.0, 1.0], [9.0, 9.0]])
    return DataProto.from_dict(
        tensors={
            "token_level_scores": scores,
            "token_level_rewards": scores / 2,
            "advantages": torch.tensor([[1.0, 2.0], [3.0, 9.0], [-1.0, 0.0], [9.0, 9.0]]),
            "returns": torch.tensor([[1.0, 3.0], [5.0, 9.0], [3.0, 3.0], [9.0, 9.0]]),
            "values": torch.tensor([[1.0, 3.0], [5.0, 9.0], [1.0, 5.0], [9.0, 9.0]]),
            "response_mask": torch.tensor([[1, 1], [1, 0], [1, 1], [0, 0]]),
            "attention_mask": torch.tensor(
                [[1, 1, 1, 1], [0, 1, 1, 0], [0, 1, 1, 1], [0, 1, 0, 0]]
            ),
        },
        non_tensors={"traj_uid": np.array(["a", "a", "b", "padding"], dtype=object)},
    )


def test_scores_count_each_trajectory_once():
    # a = 4+2 = 6, b = 1; the rewards are half of the scores
    metrics = data_metrics(make_batch())
    assert metrics["critic/score/mean"] == 3.5
    assert metrics["critic/score/max"] == 6.0
    assert metrics["critic/score/min"] == 1.0
    assert metrics["critic/rewards/mean"] == 1.75


def test_token_statistics_skip_masked_tokens_and_padding_rows():
    metrics = data_metrics(make_batch())
    # active advantages 1, 2, 3, -1, 0
    assert metrics["critic/advantages/mean"] == 1.0
    assert metrics["critic/advantages/max"] == 3.0
    # active returns 1, 3, 5, 3, 3; values 1, 3, 5, 1, 5
    assert metrics["critic/returns/mean"] == 3.0
    assert metrics["critic/values/max"] == 5.0
    # residuals 0, 0, 0, 2, -2: variance 8/5; returns: 8/5; explained 1 - 1.6/1.6 = 0
    assert metrics["critic/vf_explained_var"] == pytest.approx(0.0, abs=1e-4)


def test_without_a_critic_there_is_nothing_about_values():
    batch = make_batch()
    del batch.batch["values"]
    assert not any(name.startswith("critic/v") for name in data_metrics(batch))


def test_lengths():
    metrics = data_metrics(make_batch())
    # responses 2, 1, 2; prompts 2, 1, 1
    assert metrics["response_length/mean"] == pytest.approx(5 / 3)
    assert metrics["prompt_length/mean"] == pytest.approx(4 / 3)
    assert metrics["prompt_length/min"] == 1.0


def test_a_batch_of_padding_is_refused():
    with pytest.raises(ValueError, match="no response token"):
        data_metrics(make_batch()[3:4])


def test_the_cost_is_that_of_every_token_the_model_saw():
    # 5 response tokens and 5 prompt tokens, one of them in the padding row; 2 ranks
    metrics = cost_metrics(make_batch(), {"old_log_prob": 1.1, "collect": 3.0, "step": 2.5}, 2)
    assert metrics == {
        "perf/total_num_tokens": 10,
        "perf/throughput": 2.0,
        "timing_per_token_ms/old_log_prob": pytest.approx(110.0),
    }
