"""What an environment sends is text and numbers, or its episode is lost with a reason."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_system.environments.received import received_number, received_observation, received_text

INFO = {"score": 0, "success": False}


@given(st.text(st.characters(codec=None, exclude_categories=()), max_size=200))
def test_any_text_can_be_encoded_and_shown_afterwards(text):
    received = received_text(text, "it", max_chars=100)
    received.encode("utf-8")
    assert "\x1b" not in received and len(received) <= 100 + 40
    assert received_text(received[:100], "it", 100) == received[:100]


def test_every_text_is_cleaned_and_whether_one_was_is_told():
    observation, info = received_observation(
        "a\nb\tc", {**INFO, "admissible_actions": ["go\x07"], "task_text": "find\ud800"}, 100
    )
    assert (observation.text, observation.admissible_actions) == ("a\nb\tc", ("go\ufffd",))
    assert observation.cleaned
    assert info == {**INFO, "task_text": "find\ufffd"}
    untouched, _ = received_observation("a", {**INFO, "admissible_actions": ["go"]}, 100)
    assert not untouched.cleaned


@pytest.mark.parametrize(
    ("text", "info", "reason"),
    [
        (None, INFO, "the observation is a NoneType"),
        ("a", {"score": 1}, "info lacks success"),
        ("a", {}, "info lacks score and success"),
        ("a", {**INFO, "score": math.nan}, r"info\['score'\] is nan"),
        ("a", {**INFO, "score": "ten"}, r"info\['score'\] is 'ten'"),
        ("a", {**INFO, "admissible_actions": [1]}, "an admissible action is a int"),
        ("a", {**INFO, "task_text": 3}, r"info\['task_text'\] is a int"),
    ],
)
def test_what_is_of_another_kind_is_refused(text, info, reason):
    with pytest.raises(ValueError, match=reason):
        received_observation(text, info, 100)


@pytest.mark.parametrize("value", [math.nan, math.inf, None, "x", 10**400])
def test_a_number_is_finite(value):
    with pytest.raises(ValueError, match=r"the reward is .* finite"):
        received_number(value, "the reward")
