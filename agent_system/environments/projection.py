"""From what a model wrote to a command: the parsers of the two action formats. They never raise."""

from __future__ import annotations

import re

from agent_system.types import ParsedAction

MAX_COMMAND_CHARS = 256  # no environment has a longer command; more is prose
_ACTION_TAG = re.compile(r"(</?action>)", re.IGNORECASE)
_THINK_OPEN = re.compile(r"<think>", re.IGNORECASE)
_THINK_CLOSE = re.compile(r"</think>", re.IGNORECASE)
_DECORATION = " \t`'\"*"


def parse_think_action(response: str) -> ParsedAction:
    """Parse `<think>reasoning</think><action>command</action>`.

    The command is the first complete action after the last `</think>`; what stands inside the
    reasoning, closed or not, is never played. The format is valid with one reasoning block (its
    opening tag may have been in the prompt), one action after it, and a command in that. The text
    is "" when there is no such action: prose is not guessed at.
    """
    closes = list(_THINK_CLOSE.finditer(response))
    opens = _THINK_OPEN.findall(response)
    # [text, tag, text, tag, ..]: linear, also in a text of thousands of opening tags
    parts = _ACTION_TAG.split(_after_reasoning(response, closes))
    command = clean_command(_first_action(parts))
    has_one_action = len(parts) == 5  # text, <action>, command, </action>, text
    is_valid = len(closes) == 1 and len(opens) <= 1 and has_one_action and command != ""
    return ParsedAction(command, is_valid)


def _after_reasoning(response: str, closes: list[re.Match[str]]) -> str:
    rest = response[closes[-1].end() :] if closes else response
    return _THINK_OPEN.split(rest)[0]  # reasoning that never ends hides the rest


def _first_action(parts: list[str]) -> str:
    """What stands between the first opening tag that a closing one follows, and that one."""
    for before, inner, after in zip(parts[1::2], parts[2::2], parts[3::2], strict=False):
        if before.lower() == "<action>" and after.lower() == "</action>":
            return inner
    return ""


def parse_plain(response: str) -> ParsedAction:
    """Parse a response that is the command: its first line that is not blank."""
    lines = response.strip().splitlines()
    command = clean_command(lines[0]) if lines else ""
    return ParsedAction(command, command != "")


def clean_command(text: str) -> str:
    """One line without control characters, quotes or code marks; "" if too long for a command.

    >>> clean_command(" `Look  around` ")
    'Look around'
    """
    if len(text) > 10 * MAX_COMMAND_CHARS:
        return ""  # before looking at every character of it
    printable = "".join(character if character.isprintable() else " " for character in text)
    command = " ".join(printable.split()).strip(_DECORATION)
    return command if len(command) <= MAX_COMMAND_CHARS else ""
