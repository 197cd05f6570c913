"""Parsing what a model wrote. Nothing it can write raises."""

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent_system.environments.env_package.sciworld.projection import sciworld_projection
from agent_system.environments.projection import (
    MAX_COMMAND_CHARS,
    clean_command,
    parse_plain,
    parse_think_action,
)
from agent_system.types import ParsedAction


@pytest.mark.parametrize(
    "response",
    [
        "<think>a jar?</think><action>open jar</action>",
        "<think>\nlong\n</think>\n\n<action>\n  open   jar\n</action>\n",
        "<THINK>x</THINK><Action>open jar</Action>",
        "the opening tag was in the prompt</think><action>open jar</action>",
        "<think>not <action>go hall</action></think><action>open jar</action>",
        "<think></think><action>`open jar`</action>",
        "<think>x</think><action>```text\nopen jar\n```</action>",
        "```xml\n<think>x</think>\n<action>open jar</action>\n```",
        "<think>x</think> so: <action>**open jar**</action> That should do.",
        # tags quoted in the reasoning mean nothing, whether it was opened here or in the prompt
        "<think>it says <action>eat poison</action>, no</think><action>open jar</action>",
        "it says <action>eat poison</action>, no</think><action>open jar</action>",
    ],
)
def test_valid_responses(response):
    assert parse_think_action(response) == ParsedAction("open jar", is_format_valid=True)


@pytest.mark.parametrize(
    ("response", "command"),
    [
        ("<action>open jar</action>", "open jar"),  # no reasoning
        ("<think>x</think><action>open jar</action><action>go hall</action>", "open jar"),
        ("<think>x</think><think>y</think><action>open jar</action>", "open jar"),
        ("<think>x</think><action>open jar", ""),
        ("<think>x</think> open jar", ""),
        ("<think>x</think><action>  </action>", ""),
        ("<think>never closed <action>open jar</action>", ""),
        ("<think>x</think><think>y <action>open jar</action>", ""),
        ("<action>open jar</action><think>x</think>", ""),  # an action before the reasoning
        (f"<think>x</think><action>{'jar ' * 2500}</action>", ""),
        ("<think>x</think><action>open <action>go hall</action>", "go hall"),
        # an injected end of the reasoning: the last one counts
        ("<think>'</think><action>eat</action>' no</think><action>open jar</action>", "open jar"),
        ("<action>eat</action><think>x</think><action>open jar</action>", "open jar"),
        # never a half command: two lines, an open fence, remains of tags
        ("<think>x</think><action>open jar\ngo hall</action>", ""),
        ("<think>x</think><action>```text\nopen jar</action>", ""),
        ("<think>x</think><action>open jar< /action><b></action>", ""),
        ("<think>x</think><action>open <think>jar</think></action>", ""),
        ("<think>x</think><action>open jar</action", ""),
        ("<think>x</think>< action >open jar</action>", ""),
        ("", ""),
        ("open jar", ""),
    ],
)
def test_invalid_responses(response, command):
    assert parse_think_action(response) == ParsedAction(command, is_format_valid=False)


def test_other_languages_and_control_characters():
    assert parse_think_action("<think>想</think><action>打开 罐子</action>").text == "打开 罐子"
    parsed = parse_think_action("<think>x</think><action>open\x00\x1b\u202ejar</action>")
    assert parsed == ParsedAction("open jar", is_format_valid=True)


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("open jar", ParsedAction("open jar", True)),
        ("\n  open   jar \nI hope this works", ParsedAction("open jar", True)),
        ("", ParsedAction("", False)),
        ("\n \n", ParsedAction("", False)),
        ("jar " * 2500, ParsedAction("", False)),
        ("open\x1cjar\x85now", ParsedAction("open jar now", True)),
        ("<action>open jar</action>", ParsedAction("", False)),
    ],
)
def test_plain_responses(response, expected):
    assert parse_plain(response) == expected


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ('"open jar"', "open jar"),
        ("'**open jar**'", "open jar"),
        ('say "hello"', 'say "hello"'),
        ('"a" or "b"', '"a" or "b"'),
        ("dogs'", "dogs'"),
        ("***", ""),
    ],
)
def test_only_marks_around_the_whole_command_are_dropped(text, command):
    assert clean_command(text) == command


TAGS = st.sampled_from(["<think>", "</think>", "<action>", "</action>", "```", "\n", "go hall"])


@given(st.lists(TAGS | st.text(max_size=20)).map("".join))
@example("<action>" * 2000)
@example("<think>" * 2000 + "</think>")
@example("x" * 10_000)
def test_nothing_raises_and_commands_are_clean(response):
    for parse in (parse_think_action, parse_plain):
        action = parse(response)
        assert action.text.isprintable()
        assert action.text == " ".join(action.text.split())
        assert len(action.text) <= MAX_COMMAND_CHARS
        assert action.text or not action.is_format_valid


@given(st.lists(TAGS | st.text(max_size=10)).map("".join))
def test_what_is_in_the_reasoning_is_never_played(reasoning):
    """Whatever it holds: it ends where the last </think> is."""
    parsed = parse_think_action(f"{reasoning} secret</think> no command")
    assert parsed == ParsedAction("", is_format_valid=False)
    followed = parse_think_action(f"{reasoning} secret</think><action>open jar</action>")
    assert followed.text == "open jar"


def without_marks_and_blanks(text):
    return "".join(c for c in text if c.isprintable() and c not in "`'\"* " and not c.isspace())


@given(st.text(max_size=40))
def test_a_command_is_taken_whole_or_not_at_all(text):
    command = clean_command(text)
    assert clean_command(command) == command
    if command:
        assert without_marks_and_blanks(command) == without_marks_and_blanks(text)


@pytest.mark.parametrize(
    "piece", [*"x`<'\"\n ", "<think>", "</think>", "<action>", "<action></action>", "'\""]
)
def test_the_time_is_linear_in_the_length(piece):
    def cpu_seconds(length):
        text = piece * (length // len(piece))
        started = time.thread_time()
        parse_think_action(text)
        parse_plain(text)
        return time.thread_time() - started

    # ten times the length; a quadratic parser would take a hundred times as long
    short, long = (min(cpu_seconds(length) for _ in range(5)) for length in (20_000, 200_000))
    assert long < 40 * short + 0.002


@given(
    st.text(alphabet="abc <>", max_size=30), st.from_regex(r"[a-z]+( [a-z]+){0,3}", fullmatch=True)
)
def test_a_well_formed_response_is_always_understood(reasoning, command):
    parsed = parse_think_action(f"<think>{reasoning}</think><action>{command}</action>")
    assert parsed == ParsedAction(command, is_format_valid=True)


def test_the_projection_function():
    commands, valids = sciworld_projection(
        ["<think>x</think><action>open jar</action>", "<action>go hall</action>", "hm"]
    )
    assert commands == ["open jar", "go hall", ""]
    assert valids == [1, 0, 0]
