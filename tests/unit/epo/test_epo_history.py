"""Step entropies, references and their state, against hand-computed numbers."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from epo.history import EntropyHistory, StepEntropy, measure, reference_entropy


def observation(entropy, mask, turn, traj_ids):
    return SimpleNamespace(
        entropy_BT=torch.tensor(entropy),
        mask_BT=torch.tensor(mask),
        turn_BT=torch.tensor(turn),
        traj_ids_B=np.array(traj_ids, dtype=object),
    )


# Trajectory a: turn 0 = [1, 3] -> 2, turn 1 = [4] -> 4; mean over turns 3.
# Trajectory b: turn 0 = [1, 1, 4] -> 2; mean over turns 2.
ONE_ROW_A_TURN = observation(
    entropy=[[1.0, 3.0, 99.0], [4.0, 99.0, 99.0], [1.0, 1.0, 4.0]],
    mask=[[1, 1, 0], [1, 0, 0], [1, 1, 1]],
    turn=[[0, 0, -1], [1, -1, -1], [0, 0, 0]],
    traj_ids=["a", "a", "b"],
)
ONE_ROW_A_TRAJECTORY = observation(
    entropy=[[1.0, 3.0, 99.0, 4.0], [1.0, 1.0, 4.0, 99.0]],
    mask=[[1, 1, 0, 1], [1, 1, 1, 0]],
    turn=[[0, 0, -1, 1], [0, 0, 0, -1]],
    traj_ids=["a", "b"],
)


@pytest.mark.parametrize("rollout", [ONE_ROW_A_TURN, ONE_ROW_A_TRAJECTORY])
def test_trajectory_mean(rollout):
    entry = measure(rollout, step=3, aggregation="trajectory")
    # (3 + 2) / 2 trajectories = 2.5; turn 0: (2 + 2) / 2 = 2; turn 1: 4 / 1 = 4
    assert entry == StepEntropy(3, total=5.0, count=2, turn_totals=(4.0, 4.0), turn_counts=(2, 1))
    assert entry.mean == 2.5
    assert entry.turn_means() == {0: 2.0, 1: 4.0}


@pytest.mark.parametrize("rollout", [ONE_ROW_A_TURN, ONE_ROW_A_TRAJECTORY])
def test_token_mean(rollout):
    entry = measure(rollout, step=0, aggregation="token_mean")
    # tokens 1+3+4 + 1+1+4 = 14 over 6; turn 0: 1+3+1+1+4 = 10 over 5; turn 1: 4 over 1
    assert entry == StepEntropy(0, total=14.0, count=6, turn_totals=(10.0, 4.0), turn_counts=(5, 1))


def test_padding_rows_do_not_count():
    padded = observation(
        entropy=[[1.0, 3.0], [float("nan"), float("nan")]],
        mask=[[1, 1], [0, 0]],
        turn=[[0, 0], [-1, -1]],
        traj_ids=["a", "padding"],
    )
    assert measure(padded, 0, "trajectory") == StepEntropy(0, 2.0, 1, (2.0,), (1,))


def test_a_turn_that_nobody_played_has_no_mean():
    skipped = observation([[1.0, 2.0]], [[1, 1]], [[0, 2]], ["a"])
    assert measure(skipped, 0, "trajectory").turn_means() == {0: 1.0, 2: 2.0}


def test_a_rollout_without_tokens_has_no_entropy():
    assert measure(observation([[1.0]], [[0]], [[-1]], ["a"]), 0, "trajectory") is None


def test_refuses_a_token_without_a_turn():
    with pytest.raises(ValueError, match="turn -1"):
        measure(observation([[1.0]], [[1]], [[-1]], ["a"]), 0, "trajectory")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_refuses_an_entropy_that_is_not_finite(value):
    with pytest.raises(ValueError, match=r"step 7 .*not finite.*lower learning rate"):
        measure(observation([[1.0, value]], [[1, 1]], [[0, 0]], ["a"]), 7, "trajectory")


@settings(max_examples=50)
@given(st.data())
def test_row_order_does_not_matter(data):
    rows = data.draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    entropy = torch.rand(rows, 4, generator=generator)
    mask = torch.rand(rows, 4, generator=generator) < 0.6
    turn = torch.where(mask, torch.randint(0, 3, (rows, 4), generator=generator), -1)
    ids = np.array([f"t{int(i)}" for i in torch.randint(0, 3, (rows,), generator=generator)])
    order = torch.tensor(data.draw(st.permutations(range(rows))))

    def measured(index):
        rollout = SimpleNamespace(
            entropy_BT=entropy[index],
            mask_BT=mask[index],
            turn_BT=turn[index],
            traj_ids_B=ids[index],
        )
        return measure(rollout, 0, "trajectory")

    straight, shuffled = measured(torch.arange(rows)), measured(order)
    if straight is None:
        assert shuffled is None
        return
    assert shuffled.mean == pytest.approx(straight.mean, rel=1e-12)
    assert shuffled.turn_counts == straight.turn_counts
    assert shuffled.turn_totals == pytest.approx(straight.turn_totals, rel=1e-12)


def entry(step, mean, turns=((0.0, 0),)):
    totals, counts = zip(*turns, strict=True)
    return StepEntropy(step, total=4 * mean, count=4, turn_totals=totals, turn_counts=counts)


PAST = [entry(0, 0.4), entry(1, 0.6), entry(2, 0.8)]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("past_mean", 0.6),  # (0.4 + 0.6 + 0.8) / 3
        ("sliding_window", 0.7),  # the last two: (0.6 + 0.8) / 2
        ("ema", 0.5375),  # 0.75*0.4 + 0.25*0.6 = 0.45; 0.75*0.45 + 0.25*0.8 = 0.5375
    ],
)
def test_reference(kind, expected):
    assert reference_entropy(PAST, kind, window=2, ema_decay=0.75) == pytest.approx(expected)


def test_per_turn_reference():
    past = [
        entry(0, 0.5, turns=((2.0, 4), (0.6, 1))),
        entry(1, 0.7, turns=((4.0, 4), (0.0, 0), (0.0, 0), (0.9, 3))),
    ]
    # turn 0: (2 + 4) / 8 = 0.75; turn 1: 0.6 / 1; turn 2, never played: (0.5 + 0.7) / 2 = 0.6;
    # turn 3: 0.9 / 3 = 0.3; any later turn: 0.6
    assert reference_entropy(past, "per_turn", 1, 0.9) == pytest.approx((0.75, 0.6, 0.6, 0.3, 0.6))


@pytest.mark.parametrize("kind", ["past_mean", "sliding_window", "ema", "per_turn"])
def test_no_past_no_reference(kind):
    assert reference_entropy([], kind, window=2, ema_decay=0.75) is None


def test_a_step_is_not_its_own_past():
    history = EntropyHistory()
    for past in PAST:
        history.record(past)
    assert history.before(2) == PAST[:2]
    assert history.before(0) == []


@pytest.mark.parametrize("step", [2, 1])
def test_refuses_a_step_twice_or_out_of_order(step):
    history = EntropyHistory()
    history.record(entry(2, 0.5))
    with pytest.raises(ValueError, match=f"step {step} comes after step 2 .*resume"):
        history.record(entry(step, 0.5))


finite = st.floats(0, 1e6)
histories = st.lists(
    st.tuples(
        finite, st.integers(1, 512), st.lists(st.tuples(finite, st.integers(0, 99)), max_size=5)
    ),
    max_size=8,
)


@given(histories)
def test_state_survives_json_exactly(drawn):
    history = EntropyHistory()
    for step, (total, count, turns) in enumerate(drawn):
        totals, counts = zip(*turns, strict=True) if turns else ((), ())
        history.record(StepEntropy(step, total, count, totals, counts))
    restored = EntropyHistory()
    restored.load_state_dict(json.loads(json.dumps(history.state_dict())))
    assert restored.steps == history.steps


def test_loading_replaces_what_was_there():
    history, other = EntropyHistory(), EntropyHistory()
    history.record(entry(5, 0.5))
    other.record(entry(0, 0.1))
    history.load_state_dict(other.state_dict())
    assert history.steps == other.steps
