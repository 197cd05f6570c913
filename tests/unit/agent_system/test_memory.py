"""History strategies: what is shown is the end of the episode, and never more than asked for."""

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_system.config import ActionFormatConfig, ContextConfig
from agent_system.environments.prompting import make_prompts
from agent_system.memory import HISTORIES, LastTurns, Summary, TokenBudget, make_history
from agent_system.multi_turn_rollout.conversation import make_context
from agent_system.types import Observation, ParsedAction, Turn


def count_words(text):
    return len(text.split())


def turns_of(*observations):
    """Turns of which only the texts matter."""
    return [
        Turn(
            index=i,
            prompt_ids=np.empty(0, np.int32),
            response_ids=np.empty(0, np.int32),
            log_probs=np.empty(0, np.float32),
            response_text="",
            action=ParsedAction(f"command {i}", is_format_valid=True),
            observation=text,
            reward=0.0,
        )
        for i, text in enumerate(observations)
    ]


episodes = st.lists(st.text("ab \n", max_size=40), max_size=12).map(lambda o: turns_of(*o))
strategies = st.one_of(
    st.builds(LastTurns, st.integers(0, 15)),
    st.builds(TokenBudget, st.integers(0, 60), st.just(count_words)),
    st.builds(Summary, st.integers(0, 15), st.integers(0, 5)),
)


@pytest.mark.parametrize(
    ("length", "shown"),
    [(0, []), (1, ["c"]), (2, ["b", "c"]), (3, ["a", "b", "c"]), (9, ["a", "b", "c"])],
)
def test_the_last_turns_are_shown(length, shown):
    assert LastTurns(length).select(["a", "b", "c"]) == shown


@given(strategies, episodes)
def test_what_is_shown_is_the_end_of_the_episode(history, turns):
    shown = history.select(turns)
    end = turns[len(turns) - len(shown) :]
    assert [turn.action.text for turn in shown] == [turn.action.text for turn in end]


@given(strategies, episodes)
def test_a_choice_is_repeatable_and_leaves_the_episode_alone(history, turns):
    before = [replace(turn) for turn in turns]
    first = history.select(turns)
    assert [turn.observation for turn in first] == [t.observation for t in history.select(turns)]
    assert [turn.observation for turn in turns] == [turn.observation for turn in before]


@given(st.integers(0, 15), episodes)
def test_the_last_turns_are_as_many_as_asked(length, turns):
    assert list(LastTurns(length).select(turns)) == turns[max(len(turns) - length, 0) :]


# A turn costs "> command 0" = 3 words and its answer: 3 + 1, 3 + 2, 3 + 3.
@pytest.mark.parametrize(
    ("tokens", "shown"), [(0, 0), (5, 0), (6, 1), (10, 1), (11, 2), (14, 2), (15, 3), (99, 3)]
)
def test_a_budget_drops_whole_oldest_turns(tokens, shown):
    turns = turns_of("one", "one two", "one two three")
    assert TokenBudget(tokens, count_words).select(turns) == turns[3 - shown :]


@given(st.integers(0, 60), episodes)
def test_a_budget_is_kept_and_used(tokens, turns):
    costs = [3 + count_words(turn.observation) for turn in turns]
    shown = len(TokenBudget(tokens, count_words).select(turns))
    first = len(turns) - shown
    assert sum(costs[first:]) <= tokens
    assert first == 0 or sum(costs[first - 1 :]) > tokens


def test_a_summary_keeps_commands_and_first_words():
    turns = turns_of("a room with a door", "it opens", "dark")
    texts = [turn.observation for turn in Summary(1, 2).select(turns)]
    assert texts == ["a room ...", "it opens", "dark"]
    assert [turn.observation for turn in Summary(1, 0).select(turns)] == ["", "", "dark"]


def test_a_summarised_prompt():
    turns = turns_of("a room", "it opens", "dark", "light")
    prompts = make_prompts("", ActionFormatConfig(kind="plain"))
    text = prompts.turn("task", Summary(2, 0).select(turns), Observation("light"), 4)
    # the last answer is the observation at the prompt's end
    assert text == "task\n> command 0\n> command 1\n> command 2\ndark\n> command 3\nlight"


@given(st.integers(0, 15), st.integers(0, 5), episodes)
def test_a_summary_shows_every_turn_and_the_last_ones_in_full(length, words, turns):
    shown = Summary(length, words).select(turns)
    assert len(shown) == len(turns)
    assert shown[max(len(turns) - length, 0) :] == turns[max(len(turns) - length, 0) :]
    for turn in shown[: max(len(turns) - length, 0)]:
        assert len(turn.observation.split()) <= words + 1  # and the dots


def test_the_configuration_names_the_strategies():
    (history,) = (entry for entry in fields(ContextConfig) if entry.name == "history")
    assert history.metadata["choices"] == tuple(HISTORIES)
    config = ContextConfig(history_length=2, history_tokens=3, history_summary_words=4)
    made = [make_history(replace(config, history=name), count_words) for name in HISTORIES]
    assert made == [LastTurns(2), TokenBudget(3, count_words), Summary(2, 4)]


class CountingChat:
    """A chat template of which only the counting is needed."""

    count = staticmethod(count_words)


def test_the_turn_context_uses_the_strategy():
    config = ContextConfig(kind="turn", history="token_budget", history_tokens=7)
    context = make_context(config, CountingChat(), None, 100)
    assert context.history == TokenBudget(7, count_words)


def test_a_growing_conversation_takes_no_strategy():
    config = ContextConfig(kind="trajectory", history="summary")
    with pytest.raises(ValueError, match=r"history=summary .* set env\.context\.kind=turn"):
        make_context(config, CountingChat(), None, 100)
