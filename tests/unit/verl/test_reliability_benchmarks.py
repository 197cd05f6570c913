"""Damaged checkpoints of every kind, through the product's own search, check and load."""

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
