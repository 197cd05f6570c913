import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from verl.protocol import DataProto
from verl.trainer.ppo.metric_utils import (
    bootstrap_metric,
    calc_maj_val,
    compute_data_metrics,
    compute_throughout_metrics,
    compute_timing_metrics,
    mean_interval,
    process_validation_metrics,
    wilson_interval,
)


def make_batch(**non_tensors):
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
        non_tensors={
            "traj_uid": np.array(["a", "a", "b", "padding"], dtype=object),
            **non_tensors,
        },
    )


def test_scores_count_each_trajectory_once():
    # a = 4+2 = 6, b = 1; the rewards are half of the scores
    metrics = compute_data_metrics(make_batch(), use_critic=False)
    assert metrics["critic/score/mean"] == 3.5
    assert metrics["critic/score/max"] == 6.0
    assert metrics["critic/score/min"] == 1.0
    assert metrics["critic/rewards/mean"] == 1.75
    assert "critic/values/mean" not in metrics


def test_without_trajectory_ids_each_active_row_counts():
    batch = make_batch()
    batch.non_tensor_batch.pop("traj_uid")
    metrics = compute_data_metrics(batch, use_critic=False)
    assert metrics["critic/score/mean"] == pytest.approx((4 + 2 + 1) / 3)


def test_token_statistics_skip_masked_tokens_and_padding_rows():
    metrics = compute_data_metrics(make_batch())
    # active advantages 1, 2, 3, -1, 0
    assert metrics["critic/advantages/mean"] == 1.0
    assert metrics["critic/advantages/max"] == 3.0
    # active returns 1, 3, 5, 3, 3; values 1, 3, 5, 1, 5
    assert metrics["critic/returns/mean"] == 3.0
    assert metrics["critic/values/max"] == 5.0
    # residuals 0, 0, 0, 2, -2: variance 8/5; returns: 8/5; explained 1 - 1.6/1.6 = 0
    assert metrics["critic/vf_explained_var"] == pytest.approx(0.0, abs=1e-4)


def test_lengths():
    metrics = compute_data_metrics(make_batch())
    # responses 2, 1, 2 of width 2; prompts 2, 1, 1 of width 2
    assert metrics["response_length/mean"] == pytest.approx(5 / 3)
    assert metrics["response_length/clip_ratio"] == pytest.approx(2 / 3)
    assert metrics["prompt_length/mean"] == pytest.approx(4 / 3)
    assert metrics["prompt_length/clip_ratio"] == pytest.approx(1 / 3)
    assert metrics["prompt_length/min"] == 1.0


def test_episode_columns_count_each_trajectory_once():
    batch = make_batch(
        episode_rewards=np.array([10.0, 10.0, 0.0, 99.0]),
    )
    metrics = compute_data_metrics(batch)
    assert metrics["episode/reward/mean"] == 5.0
    assert "episode/length/mean" not in metrics


def test_a_batch_of_padding_is_refused():
    with pytest.raises(ValueError, match="no response token"):
        compute_data_metrics(make_batch()[3:4])


def test_timing_per_token():
    # 5 response tokens; 5 prompt tokens, one of them in the padding row
    metrics = compute_timing_metrics(make_batch(), {"gen": 0.5, "adv": 1.1, "step": 3.0})
    assert metrics["timing_s/step"] == 3.0
    assert metrics["timing_per_token_ms/gen"] == pytest.approx(100.0)
    assert metrics["timing_per_token_ms/adv"] == pytest.approx(1100 / 10)
    assert "timing_per_token_ms/step" not in metrics


def test_timing_without_tokens_is_zero():
    batch = SimpleNamespace(
        batch=TensorDict({"response_mask": torch.zeros(1, 2), "attention_mask": torch.zeros(1, 4)})
    )
    assert compute_timing_metrics(batch, {"gen": 1.0})["timing_per_token_ms/gen"] == 0.0


def test_throughput():
    batch = SimpleNamespace(meta_info={"global_token_num": [100, 300]})
    metrics = compute_throughout_metrics(batch, {"step": 2.0}, n_gpus=4)
    assert metrics == {
        "perf/total_num_tokens": 400,
        "perf/time_per_step": 2.0,
        "perf/throughput": 50.0,
    }


def test_wilson_interval_by_hand():
    # p = 0.8, n = 10, z = 2: centre (0.8 + 0.2) / 1.4, half 2 * sqrt(0.016 + 0.01) / 1.4
    low, high = wilson_interval(8, 10, z=2.0)
    half = 2 * math.sqrt(0.026) / 1.4
    assert low == pytest.approx(1 / 1.4 - half)
    assert high == pytest.approx(1 / 1.4 + half)


def test_wilson_interval_at_the_edges():
    # 0 of n: low 0, high z^2/n / (1 + z^2/n) = 4/10 / 1.4
    assert wilson_interval(0, 10, z=2.0) == pytest.approx((0.0, 0.4 / 1.4), abs=1e-12)
    assert wilson_interval(10, 10, z=2.0) == pytest.approx((1 - 0.4 / 1.4, 1.0))
    assert wilson_interval(0, 0) == (0.0, 1.0)
    for successes, n in ((3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="between 0 and n"):
            wilson_interval(successes, n)


def test_mean_interval_by_hand():
    # mean 2, s = 1, n = 3: 2 +- 1.96 / sqrt 3
    low, high = mean_interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 1.96 / math.sqrt(3), 2 + 1.96 / math.sqrt(3)))
    with pytest.raises(ValueError, match="at least 2 values, got 1"):
        mean_interval([1.0])


def test_bootstrap_metric():
    [(mean, std), (best, best_std)] = bootstrap_metric([4.0, 4.0], 3, [np.mean, max])
    assert (mean, std, best, best_std) == (4.0, 0.0, 4.0, 0.0)
    # the best of two draws from {0, 1}: 3/4, with standard error sqrt(3/16/1000) = 0.014
    [(best, _)] = bootstrap_metric([0.0, 1.0], 2, [max], seed=1)
    assert best == pytest.approx(0.75, abs=0.06)
    assert bootstrap_metric([1, 2, 3], 2, [max], seed=7) == bootstrap_metric(
        [1, 2, 3], 2, [max], seed=7
    )
    with pytest.raises(ValueError, match="no data"):
        bootstrap_metric([], 1, [max])


def test_calc_maj_val():
    ballots = [{"p": "B", "v": 1.0}, {"p": "A", "v": 2.0}, {"p": "A", "v": 3.0}]
    assert calc_maj_val(ballots, vote_key="p", val_key="v") == 2.0
    assert calc_maj_val(ballots[:2], vote_key="p", val_key="v") == 1.0  # a tie: the earlier vote


def test_process_validation_metrics():
    result = process_validation_metrics(
        data_sources=["s", "s", "s", "s", "t"],
        sample_inputs=["q", "q", "r", "r", "q"],
        infos_dict={
            "score": [0.0, 1.0, 1.0, 1.0, 0.5],
            "pred": ["A", "A", "B", "B", "C"],
        },
    )
    # prompts of s: means 0.5 and 1; stds 0.5 and 0
    assert result["s"]["score"]["mean@2"] == pytest.approx(0.75)
    assert result["s"]["score"]["std@2"] == pytest.approx(0.25)
    # best of two: 0.75 expected for q, 1 for r
    assert result["s"]["score"]["best@2/mean"] == pytest.approx(0.875, abs=0.03)
    assert result["s"]["score"]["worst@2/mean"] == pytest.approx(0.625, abs=0.03)
    assert "maj@2/mean" in result["s"]["score"]
    assert result["t"]["score"] == {"mean@1": 0.5}
    assert "pred" not in result["s"]


def test_sizes_double_up_to_all_attempts():
    result = process_validation_metrics(["s"] * 6, ["q"] * 6, {"score": [1.0] * 6})
    sizes = {name.split("/")[0] for name in result["s"]["score"] if name.startswith("best")}
    assert sizes == {"best@2", "best@4", "best@6"}
