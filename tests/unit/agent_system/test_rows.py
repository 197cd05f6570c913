"""Trajectories become rows: every column by hand, and nothing lost on random ones."""

import json

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from agent_system.adapters.rows import episode_metrics, to_data_proto, trajectory_record
from agent_system.types import Episode, ParsedAction, Task, Trajectory, Turn
from verl.protocol.columns import COLUMNS

PAD = 99


def make_turn(
    index, prompt, response, *, reward=0.0, valid=True, admissible=None, version=3, dropped=0
):
    return Turn(
        index=index,
        prompt_ids=np.array(prompt, np.int32),
        response_ids=np.array(response, np.int32),
        # the log-prob of token i is -i / 100: it can be recognised in the batch
        log_probs=-np.array(response, np.float32) / 100,
        response_text=f"say {index}",
        action=ParsedAction(f"act {index}", valid, admissible),
        observation=f"saw {index}",
        reward=reward,
        weight_version=version,
        dropped_turns=dropped,
    )


def make_trajectory(turns, name="find", member=0, reason="truncated", lenient=False, **fields):
    episode = Episode(Task(name, {"variation": 7}), "g0", f"g0/{member}")
    values = {
        "success": reason == "success",
        "score": 0.0,
        "episode_reward": sum(turn.reward for turn in turns),
        "info": {"lenient_success": lenient},
        "timing_s": {"reset": 1.0, "env": 2.0, "generate": 3.0},
    }
    return Trajectory(episode, turns, reason, **(values | fields))


def two_turns():
    """[1 2] -> (11 12) then observation [3] -> (13 14 15)."""
    return make_trajectory(
        [
            make_turn(0, [1, 2], [11, 12], reward=0.5, valid=False, admissible=False, version=2),
            make_turn(1, [1, 2, 11, 12, 3], [13, 14, 15], reward=10.0, admissible=True),
        ],
        reason="success",
        score=100.0,
        lenient=True,
    )


def one_turn():
    return make_trajectory(
        [make_turn(0, [4, 5, 6], [21], reward=-1.0, dropped=2)], member=1, score=30.0
    )


def test_trajectory_rows_by_hand():
    batch = to_data_proto([two_turns(), one_turn()], pad_token_id=PAD, context_kind="trajectory")
    tensors = {name: column.tolist() for name, column in batch.batch.items()}
    assert tensors.pop("input_ids") == [
        [PAD, 1, 2, 11, 12, 3, 13, 14, 15],
        [4, 5, 6, 21, PAD, PAD, PAD, PAD, PAD],
    ]
    assert tensors.pop("attention_mask") == [[0] + [1] * 8, [1] * 4 + [0] * 5]
    assert tensors.pop("response_mask") == [[1, 1, 0, 1, 1, 1], [1, 0, 0, 0, 0, 0]]
    assert tensors.pop("turn_ids") == [[0, 0, -1, 1, 1, 1], [0, -1, -1, -1, -1, -1]]
    expected = [[-0.11, -0.12, 0, -0.13, -0.14, -0.15], [-0.21, 0, 0, 0, 0, 0]]
    np.testing.assert_allclose(tensors.pop("rollout_log_probs"), expected, rtol=1e-6)
    # a turn's reward lies on its last sampled token: 12 and 15
    assert tensors.pop("token_level_scores") == [[0, 0.5, 0, 0, 0, 10], [-1, 0, 0, 0, 0, 0]]
    assert tensors.pop("invalid_action_mask") == [[0, 1, 0, 0, 0, 0], [0] * 6]
    assert not tensors

    columns = {name: column.tolist() for name, column in batch.non_tensor_batch.items()}
    assert columns == {
        "uid": ["g0", "g0"],
        "traj_uid": ["g0/0", "g0/1"],
        "turn": [0, 0],
        "weight_version": [2, 3],  # the oldest of the row
    }


def test_turn_rows_by_hand():
    batch = to_data_proto([two_turns(), one_turn()], pad_token_id=PAD, context_kind="turn")
    tensors = {name: column.tolist() for name, column in batch.batch.items()}
    assert tensors["input_ids"] == [
        [PAD, PAD, PAD, 1, 2, 11, 12, PAD],
        [1, 2, 11, 12, 3, 13, 14, 15],
        [PAD, PAD, 4, 5, 6, 21, PAD, PAD],
    ]
    assert tensors["response_mask"] == [[1, 1, 0], [1, 1, 1], [1, 0, 0]]
    assert tensors["turn_ids"] == [[0, 0, -1], [1, 1, 1], [0, -1, -1]]
    assert tensors["token_level_scores"] == [[0, 0.5, 0], [0, 0, 10], [-1, 0, 0]]
    assert tensors["invalid_action_mask"] == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]
    columns = batch.non_tensor_batch
    assert columns["traj_uid"].tolist() == ["g0/0", "g0/0", "g0/1"]
    assert columns["turn"].tolist() == [0, 1, 0]
    assert columns["weight_version"].tolist() == [2, 3, 3]


@pytest.mark.parametrize("kind", ["turn", "trajectory"])
def test_the_rows_have_the_columns_of_the_table(kind):
    data = to_data_proto([two_turns()], pad_token_id=PAD, context_kind=kind)
    made = {**data.batch, **data.non_tensor_batch}
    (rows, width_T), width = data.batch["response_mask"].shape, data.batch["input_ids"].shape[1]
    shapes = {"R": (rows,), "R T": (rows, width_T), "R P+T": (rows, width)}
    table = {c.name: (shapes[c.shape], c.dtype) for c in COLUMNS if c.producer == "rows"}
    assert {name: (tuple(v.shape), v.dtype) for name, v in made.items()} == table


def test_a_prompt_that_training_would_not_see_is_refused():
    trajectory = two_turns()
    trajectory.turns[1].prompt_ids[3] = 77  # the response 12, rewritten
    with pytest.raises(ValueError, match="turn 1 of trajectory 'g0/0' does not continue"):
        to_data_proto([trajectory], pad_token_id=PAD, context_kind="trajectory")


@pytest.mark.parametrize("kind", ["turn", "trajectory"])
def test_nothing_to_train_on_is_refused(kind):
    for trajectories in ([], [make_trajectory([], reason="env_error")]):
        with pytest.raises(ValueError, match="no trajectory has a turn"):
            to_data_proto(trajectories, pad_token_id=PAD, context_kind=kind)


def test_trajectories_without_turns_give_no_row():
    batch = to_data_proto(
        [make_trajectory([], reason="overlong"), one_turn()],
        pad_token_id=PAD,
        context_kind="trajectory",
    )
    assert batch.non_tensor_batch["traj_uid"].tolist() == ["g0/1"]


def test_a_turn_that_dropped_history_starts_a_row():
    turns = [
        *two_turns().turns,
        make_turn(2, [1, 13, 14, 15, 4], [16], reward=1.0, valid=False, version=4, dropped=1),
        make_turn(3, [1, 13, 14, 15, 4, 16, 5], [17], reward=2.0, version=5),
    ]
    data = to_data_proto([make_trajectory(turns)], pad_token_id=PAD, context_kind="trajectory")
    tensors = {name: column.tolist() for name, column in data.batch.items()}
    assert tensors["input_ids"] == [
        [PAD, PAD, PAD, 1, 2, 11, 12, 3, 13, 14, 15],
        [1, 13, 14, 15, 4, 16, 5, 17, PAD, PAD, PAD],
    ]
    assert tensors["turn_ids"] == [[0, 0, -1, 1, 1, 1], [2, -1, 3, -1, -1, -1]]
    assert tensors["token_level_scores"] == [[0, 0.5, 0, 0, 0, 10], [1, 0, 2, 0, 0, 0]]
    assert tensors["invalid_action_mask"] == [[0, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]]
    columns = {name: column.tolist() for name, column in data.non_tensor_batch.items()}
    assert columns["traj_uid"] == ["g0/0", "g0/0"]
    assert columns["turn"] == [0, 2]
    assert columns["weight_version"] == [2, 4]


tokens = st.integers(0, 50)


@st.composite
def growing_trajectories(draw):
    """Trajectories whose prompts grow by response and observation."""
    trajectories = []
    for member in range(draw(st.integers(1, 4))):
        prompt = draw(st.lists(tokens, min_size=1, max_size=4))
        turns = []
        for index in range(draw(st.integers(0, 4))):
            response = draw(st.lists(tokens, min_size=1, max_size=4))
            reward = draw(st.integers(-8, 8)) / 4
            turns.append(
                make_turn(index, prompt, response, reward=reward, valid=draw(st.booleans()))
            )
            prompt = prompt + response + draw(st.lists(tokens, max_size=3))
        trajectories.append(make_trajectory(turns, member=member))
    return trajectories


@settings(max_examples=60)
@given(growing_trajectories(), st.sampled_from(["turn", "trajectory"]))
def test_every_sampled_token_appears_once_with_its_log_prob_and_turn(trajectories, kind):
    turns = [(t.episode.traj_uid, turn) for t in trajectories for turn in t.turns]
    assume(turns)
    data = to_data_proto(trajectories, pad_token_id=PAD, context_kind=kind)
    batch, columns = data.batch, data.non_tensor_batch
    mask = batch["response_mask"].bool()
    responses = batch["input_ids"][:, -mask.shape[1] :]
    assert int(mask.sum()) == sum(len(turn.response_ids) for _, turn in turns)
    for traj_uid, turn in turns:
        here = torch.from_numpy(columns["traj_uid"] == traj_uid)[:, None]
        here = here & (batch["turn_ids"] == turn.index)
        assert responses[here].tolist() == turn.response_ids.tolist()
        assert batch["rollout_log_probs"][here].tolist() == turn.log_probs.tolist()
        assert float(batch["token_level_scores"][here].sum()) == turn.reward
    assert torch.equal(mask, batch["turn_ids"] >= 0)
    assert float(batch["token_level_scores"].sum()) == sum(turn.reward for _, turn in turns)
    invalid = sum(not turn.action.is_format_valid for _, turn in turns)
    assert int(batch["invalid_action_mask"].sum()) == invalid


@settings(max_examples=60)
@given(growing_trajectories(), st.sampled_from(["turn", "trajectory"]))
def test_the_attended_tokens_of_a_row_are_what_the_engine_saw(trajectories, kind):
    assume(any(t.turns for t in trajectories))
    data = to_data_proto(trajectories, pad_token_id=PAD, context_kind=kind)
    last_turns = [
        turn for t in trajectories for turn in (t.turns if kind == "turn" else t.turns[-1:])
    ]
    for row, turn in enumerate(last_turns):
        attended = data.batch["attention_mask"][row].bool()
        seen = data.batch["input_ids"][row][attended].tolist()
        assert seen == turn.prompt_ids.tolist() + turn.response_ids.tolist()


def test_episode_metrics_by_hand():
    other = make_trajectory(
        [make_turn(0, [1], [2])] * 3, name="boil", member=2, reason="failure", lenient=True
    )
    lost = make_trajectory([], member=3, reason="env_error", timing_s={})
    metrics = episode_metrics([two_turns(), one_turn(), other, lost])
    assert metrics["episode/success_rate"] == pytest.approx(
        1 / 3
    )  # the lost episode does not count
    assert metrics["episode/lenient_success_rate"] == pytest.approx(2 / 3)
    assert metrics["episode/success_rate/find"] == pytest.approx(1 / 2)
    assert metrics["episode/success_rate/boil"] == 0.0
    assert metrics["episode/score"] == pytest.approx((100 + 30 + 0) / 3)
    assert metrics["episode/reward/mean"] == pytest.approx((10.5 - 1 + 0) / 3)
    assert metrics["episode/length/mean"] == pytest.approx((2 + 1 + 3) / 3)
    assert (metrics["episode/length/min"], metrics["episode/length/max"]) == (1, 3)
    assert metrics["episode/valid_action_ratio"] == pytest.approx(5 / 6)
    assert metrics["episode/admissible_ratio"] == pytest.approx(1 / 2)  # known for two turns
    assert (metrics["episode/truncated"], metrics["episode/overlong"]) == (1, 0)
    assert metrics["episode/env_error"] == 1
    assert metrics["episode/dropped_turns"] == 2
    assert metrics["timing_s/episode/generate"] == 3.0


def test_episode_metrics_leave_out_what_was_not_measured():
    assert "episode/admissible_ratio" not in episode_metrics([one_turn()])
    assert episode_metrics([make_trajectory([], reason="env_error")]) == {
        "episode/truncated": 0.0,
        "episode/overlong": 0.0,
        "episode/env_error": 1.0,
    }


class SpellingTokenizer:
    def decode(self, ids):
        return " ".join(map(str, ids))


def test_record_survives_json():
    record = json.loads(json.dumps(trajectory_record(two_turns(), SpellingTokenizer())))
    assert record["task_key"] == "find[variation=7]#0"
    assert (record["reason"], record["success"], record["score"]) == ("success", True, 100.0)
    assert (record["prompt_tokens"], record["response_tokens"]) == (2, 5)
    assert record["prompt"] == "1 2"
    assert record["turns"][0] == {
        "turn": 0,
        "response": "say 0",
        "action": "act 0",
        "valid": False,
        "admissible": False,
        "observation": "saw 0",
        "reward": 0.5,
        "prompt_tokens": 2,
        "response_tokens": 2,
        "finish_reason": "stop",
        "weight_version": 2,
        "dropped_turns": 0,
    }
    assert "prompt" not in trajectory_record(make_trajectory([]), SpellingTokenizer())
