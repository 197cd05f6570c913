"""Damaged checkpoints of every kind through the product's own search and load; long runs."""

import argparse
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
CASES_A_KIND = 2  # one names its checkpoint, one takes the newest


@pytest.fixture
def damage(single_rank):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        from reliability_parts import damage

        yield damage


@pytest.mark.slow
def test_no_damaged_checkpoint_is_loaded_and_no_code_in_one_is_run(damage, tmp_path):
    counted = damage.measure(tmp_path, CASES_A_KIND * len(damage.KINDS), seed=1)
    older, refused = damage.OUTCOMES[:2]
    assert counted.keys() == damage.KINDS.keys()
    for kind, outcomes in counted.items():
        assert outcomes[older] + outcomes[refused] == CASES_A_KIND, (kind, outcomes)
        assert outcomes[older] == ("code" not in kind), kind


@pytest.mark.slow
def test_the_measurement_sees_what_must_not_happen(damage, tmp_path, monkeypatch):
    def unpickled(checkpoint):
        return torch.load(checkpoint / "driver.pt", weights_only=False)

    monkeypatch.setattr(damage, "load_driver_state", unpickled)
    monkeypatch.setattr("verl.trainer.checkpoint.find_damage", lambda folder, **facts: None)

    def other_weights(checkpoint, other, rng):
        damage.exchange(checkpoint / "actor", other / "actor")

    kinds = {"code": damage.KINDS["code in driver.pt"], "none": lambda *_: None}
    monkeypatch.setattr(damage, "KINDS", kinds | {"other weights": other_weights})
    counted = damage.measure(tmp_path, 3, seed=1)
    outcomes = {kind: next(iter(counts)) for kind, counts in counted.items()}
    as_saved, wrong, executed, _ = damage.OUTCOMES[2:]
    assert outcomes == {"code": executed, "none": as_saved, "other weights": wrong}


def test_a_long_run_keeps_few_files_and_every_step_once(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from reliability_parts import endurance

    parser = argparse.ArgumentParser()
    endurance.add_arguments(parser)
    options = parser.parse_args(["--steps=100", "--save-freq=5", "--episodes=2"])
    rows = [endurance.measured(options, tmp_path, part) for part in range(10)]
    assert [row[0] for row in rows] == [*range(12, 102, 10), 100]  # 2 steps are forgotten each time
    # metrics, rollouts, pointer, and two checkpoints of a state and a manifest
    assert {row[5] for row in rows} == {7}
    endurance.check(options, tmp_path)


def test_any_override_is_accepted_or_refused_in_one_short_sentence(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from reliability_parts import configurations

    monkeypatch.chdir(tmp_path)
    accepted, _ = configurations.outcome_of([*configurations.ALWAYS, "algo=grpo"])
    assert accepted == configurations.ACCEPTED  # so that what is refused is so for its overrides
    counted, examples = configurations.measure(tmp_path, 60, seed=1)
    assert examples == []
    assert sum(outcomes[configurations.REFUSED] for outcomes in counted.values()) > 30


def test_the_sweep_sees_a_raw_exception(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from reliability_parts import configurations

    def broken(config):
        raise OverflowError("too large")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("verl.trainer.run.check_values", broken)
    outcome = configurations.outcome_of([*configurations.ALWAYS, "algo=grpo"])
    assert outcome == (configurations.RAISED, "OverflowError: too large")


def test_no_episode_is_lost_to_what_an_environment_says(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    from reliability_parts import hostile_env, observations

    options = hostile_env.HostileOptions(long_every=20, long_chars=100_000)
    counted = observations.measure(2, options)
    assert (counted["observations"], counted["episodes"], counted["lost"]) == (200, 2, 0)
    assert counted["cleaned"] > 100
