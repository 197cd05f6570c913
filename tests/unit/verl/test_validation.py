"""Validation: what is played, and what is reported of it."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from verl.config.algorithm import DataConfig
from verl.config.trainer import RunConfig, ValidationConfig
from verl.trainer.main_eval import evaluation_table
from verl.trainer.ppo.validation import VALIDATION_SEED, Validator, validation_metrics
from verl.workers.interfaces import TaskSet


@dataclass(frozen=True)
class FakeEpisode:
    traj_uid: str
    uid: str = ""
    task: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(name="find"))


def played(uid: str, success: bool, *, score: float = 0.0, reason: str = "truncated"):
    return SimpleNamespace(
        episode=FakeEpisode(f"{uid}/0", uid),
        success=success,
        score=score,
        num_turns=4,
        reason=reason,
        info={"lenient_success": score > 0},
    )


class RecordingRollouts:
    def __init__(self):
        self.calls = []

    def collect(self, episodes, sampling, seed, on_trajectory):
        self.calls.append(([e.traj_uid for e in episodes], sampling, seed))
        return [played(e.traj_uid, success=True, score=100.0) for e in episodes]


class World:
    def validation_sets(self):
        return [
            TaskSet("a", [FakeEpisode("a-0"), FakeEpisode("a-1")], "hash"),
            TaskSet("b", [FakeEpisode("b-0")], "hash"),
        ]

    def sampling(self, mode):
        return mode


def settings(in_flight=None, **validation) -> SimpleNamespace:
    return SimpleNamespace(
        trainer=RunConfig(validation=ValidationConfig(**validation)),
        data=DataConfig(val_batch_size=in_flight),
    )


def run(config) -> tuple[dict, RecordingRollouts, list[str]]:
    rollouts, parts = RecordingRollouts(), []
    metrics = Validator(config, World(), rollouts).run(lambda name, _: parts.append(name))
    return metrics, rollouts, parts


def test_every_set_is_played_in_every_mode_with_the_same_seed():
    metrics, rollouts, parts = run(settings(modes=["sampled", "greedy"]))
    assert parts == ["a_sampled", "a_greedy", "b_sampled", "b_greedy"]
    assert {seed for _, _, seed in rollouts.calls} == {VALIDATION_SEED}
    assert [sampling for _, sampling, _ in rollouts.calls] == ["sampled", "greedy"] * 2
    assert metrics["val/a/greedy/n"] == 2 and metrics["val/b/sampled/success_rate"] == 1.0


def test_repeated_episodes_of_a_task_are_told_apart():
    _, rollouts, _ = run(settings(modes=["sampled"], episodes_per_task=2))
    assert rollouts.calls[0][0] == ["a-0/0", "a-0/1", "a-1/0", "a-1/1"]


def test_episodes_are_handed_out_in_bounded_shares():
    _, rollouts, _ = run(settings(in_flight=1, modes=["greedy"]))
    assert [len(uids) for uids, _, _ in rollouts.calls] == [1, 1, 1]


def test_rates_leave_out_episodes_that_the_environment_lost():
    metrics = validation_metrics(
        "val/x/sampled",
        [
            played("0", True, score=100.0, reason="success"),
            played("1", False, score=25.0),
            played("2", False, reason="env_error"),
        ],
    )
    assert metrics["val/x/sampled/success_rate"] == 0.5
    assert metrics["val/x/sampled/lenient_success_rate"] == 1.0
    assert metrics["val/x/sampled/score"] == 62.5  # (100 + 25) / 2
    assert metrics["val/x/sampled/env_errors"] == 1
    # Wilson at 1 of 2, z = 1.96: centre 1/2, half width 1.96/(2+3.8416)*sqrt(0.5+3.8416/4) = 0.4055
    assert metrics["val/x/sampled/success_low"] == pytest.approx(0.0945, abs=1e-3)
    assert metrics["val/x/sampled/success_high"] == pytest.approx(0.9055, abs=1e-3)


def test_a_validation_without_any_episode_is_reported_not_raised():
    metrics = validation_metrics("val/x/sampled", [played("0", False, reason="env_error")])
    assert metrics["val/x/sampled/n"] == 0 and metrics["val/x/sampled/success_rate"] == 0.0


def test_the_table_of_an_evaluation_reads_success_with_its_interval():
    metrics = validation_metrics("val/held_out/greedy", [played("0", True), played("1", False)])
    line = evaluation_table(metrics).splitlines()[1]
    assert line.split() == ["held_out/greedy", "50.0%", "9.5", "-", "90.5", "2", "2"]


def test_episodes_of_one_task_are_no_independent_measurements():
    # 20 tasks, 16 greedy episodes of each, which are alike: Wilson for 10 of 20, not 160 of 320
    trajectories = [played(f"{task}", task < 10) for task in range(20) for _ in range(16)]
    metrics = validation_metrics("val/x/greedy", trajectories)
    line = evaluation_table(metrics).splitlines()[1]
    assert line.split() == ["x/greedy", "50.0%", "29.9", "-", "70.1", "320", "20"]
