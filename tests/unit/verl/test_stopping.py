"""Stop strings count outside of the reasoning, whatever the engine."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_system.environments.projection import parse_think_action
from agent_system.types import SamplingParams
from verl.workers.rollout.stopping import StopStrings, is_stopped

from ...families import family

ACTION = SamplingParams(stop=("</action>",))
OPENED = SamplingParams(stop=("</action>",), in_reasoning=True)
QUOTING = (
    "<think>The format is <action>command</action>. The door is shut, so I open it.</think>"
    "<action>open door</action>"
)


@pytest.mark.parametrize(
    ("text", "stopped"),
    [
        (QUOTING, True),
        (QUOTING.removesuffix("</action>"), False),
        ("<think>a</action>", False),
        ("<think>a</action></think>", False),
        ("<THINK>a</action></Think>", False),
        ("<think>a</think>b</action>", True),
        ("<action>go</action>", True),  # no reasoning at all
        ("<action>go</action><think>", True),
        ("<think>a</think><think>b</action>", False),  # a second one
        ("<think>a<think>b</think></action>", True),  # it ends where it is closed
    ],
)
def test_a_stop_string_counts_outside_of_the_reasoning(text, stopped):
    assert is_stopped(text, ACTION) == stopped


def test_the_prompt_may_have_opened_the_reasoning():
    assert not is_stopped("so <action>eat</action>", OPENED)
    assert is_stopped("so <action>eat</action></think><action>go</action>", OPENED)
    assert not is_stopped("a thought", SamplingParams(stop=("t",), in_reasoning=True))


def test_the_end_of_the_reasoning_may_be_a_stop_string():
    assert is_stopped("<think>a</think>", SamplingParams(stop=("</think>",)))
    assert not is_stopped("<think>a", SamplingParams(stop=("</think>", "</action>")))


def cut(text):
    """What an engine that samples `text` token by token returns."""
    tokenizer = family("chatml")
    stops, ids = StopStrings(tokenizer), tokenizer.encode(text, add_special_tokens=False)
    length = next((n for n in range(1, len(ids)) if stops(ids[:n], ACTION)), len(ids))
    return tokenizer.decode(ids[:length])


def test_a_reply_that_quotes_the_format_is_played_whole():
    reply = cut(QUOTING + " and then what the environment might say")
    assert reply == QUOTING
    assert parse_think_action(reply).text == "open door"
    assert parse_think_action(reply).is_format_valid


PIECES = st.sampled_from(["<think>", "</think>", "<action>", "</action>", "a", " "])


@given(st.lists(PIECES, max_size=8).map("".join))
def test_what_is_cut_holds_no_command_after_its_end(text):
    """The first point at which it stops ends with the stop string, outside of the reasoning."""
    ends = [n for n in range(1, len(text) + 1) if is_stopped(text[:n], ACTION)]
    if ends:
        before = text[: ends[0]]
        assert before.endswith("</action>")
        assert before.rfind("<think>") <= before.rfind("</think>") or "<think>" not in before
