"""The hook over several steps: the corridor comes from the past, and survives a resume."""

import json
import logging
import math
import pickle
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from epo import EPOConfig, build

CONFIG = EPOConfig(enable=True, kappa_l=0.5, kappa_r=1.5, entropy_coeff=0.1, alpha=0.1)
TOTAL = 10


def rollout(*turn_entropies):
    """One trajectory with one token a turn."""
    n = len(turn_entropies)
    return SimpleNamespace(
        entropy_BT=torch.tensor([turn_entropies]),
        mask_BT=torch.ones(1, n),
        turn_BT=torch.arange(n)[None],
        traj_ids_B=np.array(["a"]),
    )


def play(hook, step, *turn_entropies):
    state = hook.context_state(step, TOTAL)
    return state, hook.after_step(step, rollout(*turn_entropies))


def test_first_step_has_no_corridor():
    state, metrics = play(build(CONFIG).hook, 0, 0.5, 1.5)
    assert state == {"reference": None, "lower": None, "upper": None, "beta": 2.0}
    # the step's mean (0.5 + 1.5) / 2 = 1
    assert metrics == {
        "epo/beta": 2.0,
        "epo/entropy_step": 1.0,
        "epo/entropy_turn/0": 0.5,
        "epo/entropy_turn/1": 1.5,
    }


def test_corridor_follows_the_past_mean():
    hook = build(CONFIG).hook
    play(hook, 0, 0.4)
    play(hook, 1, 0.8)
    state, metrics = play(hook, 2, 100.0)  # its own entropy must not count
    # reference (0.4 + 0.8) / 2 = 0.6; 0.5*0.6 = 0.3; 1.5*0.6 = 0.9; beta = 1 + exp(-3 * 2/5)
    expected = {"reference": 0.6, "lower": 0.3, "upper": 0.9, "beta": 1 + math.exp(-1.2)}
    assert state == pytest.approx(expected)
    assert {name: metrics[f"epo/{name}"] for name in expected} == pytest.approx(expected)
    assert metrics["epo/entropy_step"] == 100.0


def test_per_turn_metrics():
    hook = build(replace(CONFIG, reference="per_turn")).hook
    play(hook, 0, 0.4, 0.8)
    state, metrics = play(hook, 1, 0.5)
    assert state["reference"] == pytest.approx((0.4, 0.8, 0.6))
    assert metrics["epo/reference"] == pytest.approx(0.6)  # any turn that was never played
    assert metrics["epo/reference_turn/1"] == pytest.approx(0.8)
    assert metrics["epo/upper_turn/1"] == pytest.approx(1.2)
    assert "epo/reference_turn/2" not in metrics


def test_before_start_step_the_history_grows_but_nothing_is_smoothed():
    hook = build(replace(CONFIG, start_step=2)).hook
    assert play(hook, 0, 0.4)[0]["reference"] is None
    assert play(hook, 1, 0.8)[0]["reference"] is None
    assert play(hook, 2, 0.8)[0]["reference"] == pytest.approx(0.6)


def test_a_step_without_context_still_counts():
    hook = build(
        CONFIG
    ).hook  # critic warm-up: the actor is not updated, so no context is asked for
    assert "epo/beta" not in hook.after_step(0, rollout(0.4))
    assert hook.context_state(1, TOTAL)["reference"] == pytest.approx(0.4)


def test_an_empty_rollout_is_skipped_with_a_warning(caplog):
    hook = build(CONFIG).hook
    empty = SimpleNamespace(
        entropy_BT=torch.zeros(1, 2),
        mask_BT=torch.zeros(1, 2),
        turn_BT=torch.full((1, 2), -1),
        traj_ids_B=np.array(["a"]),
    )
    with caplog.at_level(logging.WARNING):
        assert hook.after_step(0, empty) == {}
    assert "step 0 has no response token" in caplog.text
    assert hook.context_state(1, TOTAL)["reference"] is None


@pytest.mark.parametrize("reference", ["past_mean", "sliding_window", "ema", "per_turn"])
@pytest.mark.parametrize("aggregation", ["trajectory", "token_mean"])
def test_a_resumed_run_continues_exactly(reference, aggregation):
    config = replace(CONFIG, reference=reference, aggregation=aggregation)
    entropies = torch.rand(6, 3, generator=torch.Generator().manual_seed(0)).tolist()
    unbroken, first = build(config).hook, build(config).hook
    for step in range(3):
        play(unbroken, step, *entropies[step])
        play(first, step, *entropies[step])
    resumed = build(config)
    resumed.hook.load_state_dict(json.loads(json.dumps(first.state_dict())))
    columns = {
        resumed.regularizer.required_columns[0]: torch.full((1, 3), 1 / 3),
        "turn_ids": torch.arange(3)[None],
    }
    for step in range(3, 6):
        expected, expected_metrics = play(unbroken, step, *entropies[step])
        actual, actual_metrics = play(resumed.hook, step, *entropies[step])
        assert actual == expected  # to the last bit
        assert actual_metrics == expected_metrics
        entropy = torch.tensor([entropies[step]])
        losses = [
            resumed.regularizer(entropy, torch.ones(1, 3), columns, SimpleNamespace(state=state))[0]
            for state in (actual, expected)
        ]
        assert torch.equal(*losses)


def test_refuses_the_history_of_another_aggregation():
    saved = build(CONFIG).hook.state_dict()
    other = build(replace(CONFIG, aggregation="token_mean")).hook
    with pytest.raises(
        ValueError, match=r"means of kind trajectory; set epo\.aggregation=trajectory"
    ):
        other.load_state_dict(saved)


def test_build_checks_the_config():
    with pytest.raises(ValueError, match="kappa_l"):
        build(replace(CONFIG, kappa_l=2.0))


def test_indicator_says_once_that_it_has_no_gradient(caplog):
    with caplog.at_level(logging.WARNING):
        plugin = build(replace(CONFIG, penalty="indicator"))
        play(plugin.hook, 0, 0.4)
        play(plugin.hook, 1, 0.4)
    assert sum("zero gradient" in record.message for record in caplog.records) == 1
    caplog.clear()
    build(CONFIG)
    assert not caplog.records


def test_context_state_travels_to_workers():
    hook = build(replace(CONFIG, reference="per_turn")).hook
    play(hook, 0, 0.4, 0.5)
    state = hook.context_state(1, TOTAL)
    assert pickle.loads(pickle.dumps(state)) == state


def test_entropy_file_mirrors_the_history(tmp_path):
    path = tmp_path / "new" / "entropy.jsonl"
    config = replace(CONFIG, entropy_distribution_output_file=str(path))
    hook = build(config).hook
    play(hook, 0, 0.25, 0.75)
    saved = hook.state_dict()
    play(hook, 1, 0.5)

    resumed = build(config).hook  # from the checkpoint of step 0: step 1 is played again
    resumed.load_state_dict(saved)
    play(resumed, 1, 1.0)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 0, "entropy": 0.5, "turn_entropy": [0.25, 0.75], "turn_count": [1, 1]},
        {"step": 1, "entropy": 1.0, "turn_entropy": [1.0], "turn_count": [1]},
    ]
    assert [child.name for child in path.parent.iterdir()] == ["entropy.jsonl"]
