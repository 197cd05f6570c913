"""A conversation that outgrows its prompt budget, from random games to rows and advantages.

Played with the tokenizer of the shipped small policy.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from agent_system.adapters.rows import to_data_proto
from agent_system.environments.prompting import PlainPrompts
from agent_system.multi_turn_rollout.conversation import (
    KEPT_SHARE,
    TrajectoryContext,
    segments,
)
from agent_system.types import Episode, Observation, ParsedAction, Task, Trajectory, Turn
from verl.algorithms.aggregation import trajectory_token_weights
from verl.algorithms.gae import gae
from verl.config.algorithm import AlgorithmConfig
from verl.trainer.ppo.advantage_stage import add_advantages, has_company, with_episode_outcome
from verl.workers.chat_template import ChatTemplate

MODEL = Path(__file__).parents[3] / "examples/small_policy/model"
TOKENIZER = AutoTokenizer.from_pretrained(MODEL)
CHAT = ChatTemplate(TOKENIZER)
PROMPTS = PlainPrompts()
TASK = "Your task is to find an animal."
WORDS = ["kitchen", "door", "go to hallway", "red box", "?!", "a b"]


class WithSystem(PlainPrompts):
    def system(self, task_text):
        return "look around"


@st.composite
def games(draw):
    """Sampled responses and the observations around them (one more): sizes vary a lot."""
    turns = draw(st.integers(1, 12))
    response = st.lists(st.integers(0, len(TOKENIZER) - 1), min_size=1, max_size=20)
    text = st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join)
    return (
        draw(st.lists(response, min_size=turns, max_size=turns)),
        draw(st.lists(text, min_size=turns + 1, max_size=turns + 1)),
    )


budgets = st.integers(20, 150)


def play(context, game):
    """The turns that fit: each answers the observation of its index."""
    responses, observations = game
    turns = []
    for index, response in enumerate(responses):
        prompt = context.prompt(TASK, turns, Observation(observations[index], ("look",)))
        if prompt is None:
            break
        turns.append(
            Turn(
                index,
                prompt.ids,
                np.asarray(response, np.int32),
                -np.arange(len(response), dtype=np.float32),
                "",
                ParsedAction("", True),
                observations[index + 1],
                reward=float(index % 3),
                dropped_turns=prompt.dropped_turns,
            )
        )
    return turns


def opening(observation, prompts=PROMPTS):
    first = prompts.first(TASK, Observation(observation))
    return CHAT.opening(prompts.system(TASK), first).tolist()


def answered(game, index):
    """Turn `index` as the next prompt shows it: what was sampled, and the observation."""
    responses, observations = game
    text = PROMPTS.next(Observation(observations[index + 1]))
    return [*responses[index], *CHAT.continuation(np.asarray(responses[index]), text).tolist()]


def conversation(game, first, end, prompts=PROMPTS):
    """The prompt of turn `end` that shows the turns from `first` on."""
    past = [token for index in range(first, end) for token in answered(game, index)]
    return [*opening(game[1][first], prompts), *past]


@settings(max_examples=100)
@given(games(), budgets, st.sampled_from([PROMPTS, WithSystem()]))
def test_every_prompt_fits_and_is_the_opening_and_the_exact_tokens_since(game, budget, prompts):
    first = 0
    for turn in play(TrajectoryContext(CHAT, prompts, budget), game):
        first += turn.dropped_turns
        assert len(turn.prompt_ids) <= budget
        assert turn.prompt_ids.tolist() == conversation(game, first, turn.index, prompts)
        assert turn.prompt_ids.dtype == np.int32


@settings(max_examples=100)
@given(games(), budgets)
def test_as_few_turns_are_dropped_as_leaves_room(game, budget):
    """Against a search that tries every number of turns on the whole text."""
    turns = play(TrajectoryContext(CHAT, PROMPTS, budget), game)
    shown = row_start = 0
    for turn in turns:
        end = turn.index
        uncut = conversation(game, shown, end)
        assert (turn.dropped_turns > 0) == (len(uncut) > budget)
        if turn.dropped_turns == 0:
            continue
        lengths = {
            first: (len(opening(game[1][first])), len(conversation(game, first, end)))
            for first in range(max(row_start, shown + 1), end + 1)
        }
        roomy = [
            first
            for first, (head, whole) in lengths.items()
            if first < end and whole - head <= KEPT_SHARE * (budget - head)
        ]
        fitting = [first for first, (_, whole) in lengths.items() if whole <= budget]
        shown, row_start = (roomy or fitting)[0], end
        assert turn.dropped_turns == shown - sum(t.dropped_turns for t in turns[:end])
    if len(turns) < len(game[0]):  # the end: not even the task and the observation fit
        assert len(opening(game[1][len(turns)])) > budget


@settings(max_examples=60)
@given(games(), budgets)
def test_until_the_first_cut_it_is_the_conversation_without_a_limit(game, budget):
    turns = play_or_skip(game, budget)
    free = play(TrajectoryContext(CHAT, PROMPTS, 10**6), game)
    assert len(segments(free)) == 1
    for turn, unlimited in zip(segments(turns)[0], free, strict=False):
        assert turn.prompt_ids.tolist() == unlimited.prompt_ids.tolist()


def play_or_skip(game, budget):
    turns = play(TrajectoryContext(CHAT, PROMPTS, budget), game)
    assume(turns)
    return turns


def trajectory(turns, member, uid="g0"):
    return Trajectory(
        Episode(Task("find", {}), uid, f"{uid}/{member}"),
        turns,
        "truncated",
        success=False,
        score=0.0,
        episode_reward=sum(turn.reward for turn in turns),
        info={"lenient_success": False},
    )


def rows_of(trajectories, kind):
    return to_data_proto(trajectories, pad_token_id=0, context_kind=kind)


@settings(max_examples=60)
@given(games(), budgets)
def test_the_rows_of_a_trajectory_are_its_segments(game, budget):
    turns = play_or_skip(game, budget)
    data = rows_of([trajectory(turns, 0)], "trajectory")
    parts = segments(turns)
    assert [turn for part in parts for turn in part] == turns
    assert len(data) == len(parts)
    columns = data.non_tensor_batch
    assert columns["turn"].tolist() == [part[0].index for part in parts]
    assert float(data.batch["token_level_scores"].sum()) == sum(turn.reward for turn in turns)
    for row, part in enumerate(parts):
        mask = data.batch["response_mask"][row].bool()
        assert data.batch["input_ids"][row, -len(mask) :][mask].tolist() == [
            token for turn in part for token in turn.response_ids.tolist()
        ]
        seen = data.batch["input_ids"][row][data.batch["attention_mask"][row].bool()].tolist()
        assert seen == [*part[-1].prompt_ids.tolist(), *part[-1].response_ids.tolist()]


def test_another_prompt_is_refused_unless_it_dropped_turns():
    game = (GAME[0][:4], GAME[1][:5])
    turns = play(TrajectoryContext(CHAT, PROMPTS, BUDGET), game)
    assert [turn.dropped_turns > 0 for turn in turns] == [False, False, False, True]
    turns[3].dropped_turns = 0  # as an engine that cut the prompt silently
    with pytest.raises(ValueError, match="turn 3 of trajectory 'g0/0' does not continue"):
        rows_of([trajectory(turns, 0)], "trajectory")


# Each turn adds 5 sampled tokens and an answer: three prompts fit, the fourth is cut.
GAME = (
    [[7, 8, 9, 10, 11 + index] for index in range(9)],
    [f"door {index}" for index in range(10)],
)
BUDGET = len(conversation(GAME, 0, 2))


@pytest.fixture
def segmented():
    """Two trajectories of a group: nine turns in several rows, and two turns in one row."""
    context = TrajectoryContext(CHAT, PROMPTS, BUDGET)
    long, short = play(context, GAME), play(context, (GAME[0][:2], GAME[1][:3]))
    assert len(segments(long)) > 2
    assert len(segments(short)) == 1
    return [trajectory(long, 0), trajectory(short, 1)]


def test_every_trajectory_and_every_turn_of_it_weighs_the_same(segmented):
    data = rows_of(segmented, "trajectory")
    turn_ids = data.batch["turn_ids"]
    weight = trajectory_token_weights(
        data.non_tensor_batch["traj_uid"], turn_ids, data.batch["response_mask"]
    )
    is_long = torch.from_numpy(data.non_tensor_batch["traj_uid"] == "g0/0")
    assert float(weight[is_long].sum()) == pytest.approx(1 / 2)
    assert float(weight[~is_long].sum()) == pytest.approx(1 / 2)
    for turn in range(9):  # 1 / (2 trajectories * 9 turns), whatever row the turn is in
        share = float(weight[is_long][turn_ids[is_long] == turn].sum())
        assert share == pytest.approx(1 / 18)


def with_rewards(data):
    data.batch["token_level_rewards"] = data.batch["token_level_scores"]
    return data


def test_all_rows_of_a_trajectory_earn_its_outcome(segmented):
    data = with_rewards(rows_of(segmented, "trajectory"))
    config = AlgorithmConfig(adv_estimator="grpo")
    # rewards 0 1 2 0 1 2 0 1 2 = 9 and 0 1 = 1
    rows = len(data) - 1
    assert with_episode_outcome(data).sum(-1).tolist() == [9.0] * rows + [1.0]
    assert has_company(data, config).all()
    data = add_advantages(data, config)
    # mean 5, standard deviation sqrt((16 + 16) / 1): each trajectory counts once, not each row
    advantage = 4 / 32**0.5
    for row, expected in enumerate([advantage] * rows + [-advantage]):
        active = data.batch["response_mask"][row].bool()
        np.testing.assert_allclose(data.batch["advantages"][row][active], expected, rtol=1e-5)


def test_segments_of_a_trajectory_left_alone_teach_nothing(segmented):
    alone = trajectory(segmented[0].turns, 0, uid="g1")
    data = rows_of([*segmented, alone], "trajectory")
    company = has_company(data, AlgorithmConfig(adv_estimator="grpo"))
    assert company.tolist() == (data.non_tensor_batch["uid"] == "g0").tolist()


def test_gae_runs_on_from_segment_to_segment(segmented):
    """The same advantages as with a row a turn, in whatever order the rows come."""
    by_turn = advantages_by_turn(rows_of(segmented, "turn"))
    data = rows_of(segmented, "trajectory")
    shuffled = data.select_idxs(np.random.default_rng(0).permutation(len(data)))
    for rows in (data, shuffled):
        by_segment = advantages_by_turn(rows)
        assert by_segment.keys() == by_turn.keys()
        for turn, advantages in by_turn.items():
            np.testing.assert_allclose(by_segment[turn], advantages, rtol=1e-5)


def advantages_by_turn(data):
    """(trajectory, turn) -> advantages, where a token's value is its log-prob plus its turn."""
    mask, turn_ids = data.batch["response_mask"], data.batch["turn_ids"]
    values = (data.batch["rollout_log_probs"] + turn_ids) * mask
    columns = data.non_tensor_batch
    advantages, _ = gae(
        data.batch["token_level_scores"],
        values,
        mask,
        0.9,
        0.8,
        columns["traj_uid"],
        columns["turn"],
    )
    found = {}
    for row, traj_uid in enumerate(columns["traj_uid"]):
        for turn in turn_ids[row][mask[row].bool()].unique().tolist():
            found[traj_uid, turn] = advantages[row][turn_ids[row] == turn].numpy()
    return found
