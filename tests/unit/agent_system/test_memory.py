"""History strategies."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_system.memory import LastTurns


@pytest.mark.parametrize(
    ("length", "shown"),
    [(0, []), (1, ["c"]), (2, ["b", "c"]), (3, ["a", "b", "c"]), (9, ["a", "b", "c"])],
)
def test_the_last_turns_are_shown(length, shown):
    assert LastTurns(length).select(["a", "b", "c"]) == shown


@given(st.lists(st.integers()), st.integers(0, 20))
def test_what_is_shown_is_the_end_of_the_episode(turns, length):
    shown = LastTurns(length).select(turns)
    assert len(shown) == min(length, len(turns))
    assert turns[len(turns) - len(shown) :] == shown


def test_a_negative_length_is_refused():
    with pytest.raises(ValueError, match="history_length=-1"):
        LastTurns(-1)
