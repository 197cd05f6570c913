r"""From what a model wrote to a command: the parsers of the two action formats. They never raise.

**think_action**, `<think>reasoning</think><action>command</action>`, is read so:

1. Tags are exactly `<think>`, `</think>`, `<action>` and `</action>`, in any case.
2. The reasoning ends at the *last* `</think>`. Nothing before it is played, so tags quoted inside
   the reasoning mean nothing. A `<think>` after it starts reasoning that hides all that follows.
   Without any `</think>` there is no reasoning to skip, unless an open `<think>` hides the rest.
3. The command is in the first `<action>` after the reasoning that is closed with nothing but text
   inside: of `<action>a<action>b</action>` it is b. An action that is never closed is none.
4. What stands in the action is cleaned (`clean_command`) and has to be one line of at most 256
   characters without remains of a tag (`< /action`) or a fence; anything else is "", never a piece
   of it.
5. The format is valid with exactly one `</think>`, at most one `<think>` (it may have been in the
   prompt), exactly one action and that outside of the reasoning, and a command in it. Text around
   the two blocks, a code fence for instance, is allowed.

Of several actions the first one counts and the format is invalid: a model that goes on after its
command is imagining the answer. Whether the environment takes the command is another question
(`ParsedAction.is_admissible`), which the prompt builder answers.

**plain**: the first line that is not blank is the command; the format is valid if there is one.

All of it takes time linear in the length of the response.
"""

from __future__ import annotations

import re

from agent_system.types import ParsedAction

MAX_COMMAND_CHARS = 256  # no environment has a longer command; more is prose
MAX_RAW_CHARS = 10 * MAX_COMMAND_CHARS  # of an action with its blanks and marks
_ACTION_TAG = re.compile(r"(</?action>)", re.IGNORECASE)
_THINK_OPEN = re.compile(r"<think>", re.IGNORECASE)
_THINK_CLOSE = re.compile(r"</think>", re.IGNORECASE)
_LINE_BREAK = re.compile(r"\r\n|\r|\n")
_REMAINS = re.compile(r"< ?/? ?(?:think|action)\b|\b(?:think|action) ?>|```", re.IGNORECASE)
_FENCE = "```"
_MARKS = "`'\"*"  # quotes, code marks, emphasis


def parse_think_action(response: str) -> ParsedAction:
    """Parse `<think>reasoning</think><action>command</action>` by the rules above.

    The text is "" when there is no complete action after the reasoning: prose is not guessed at.
    """
    closes = list(_THINK_CLOSE.finditer(response))
    opens = list(_THINK_OPEN.finditer(response))
    # [text, tag, text, tag, ..]: linear, also in a text of thousands of opening tags
    parts = _ACTION_TAG.split(_after_reasoning(response, closes))
    command = clean_command(_first_action(parts))
    has_one_block = len(closes) == 1 and len(opens) <= 1
    is_early_action = bool(opens) and _ACTION_TAG.search(response, 0, opens[0].start()) is not None
    has_one_action = len(parts) == 5 and not is_early_action  # text, tag, command, tag, text
    return ParsedAction(command, has_one_block and has_one_action and command != "")


def _after_reasoning(response: str, closes: list[re.Match[str]]) -> str:
    rest = response[closes[-1].end() :] if closes else response
    return _THINK_OPEN.split(rest, maxsplit=1)[0]  # reasoning that never ends hides the rest


def _first_action(parts: list[str]) -> str:
    """What stands between the first opening tag that a closing one follows, and that one."""
    for before, inner, after in zip(parts[1::2], parts[2::2], parts[3::2], strict=False):
        if before.lower() == "<action>" and after.lower() == "</action>":
            return inner
    return ""


def parse_plain(response: str) -> ParsedAction:
    """Parse a response that is the command: its first line that is not blank."""
    lines = (line for line in _LINE_BREAK.split(response) if line.strip())
    command = clean_command(next(lines, ""))
    return ParsedAction(command, command != "")


def project(responses: list[str]) -> tuple[list[str], list[int]]:
    """Model outputs -> commands and, for each, 1 if it followed the think/action format, else 0."""
    parsed = [parse_think_action(response) for response in responses]
    return [action.text for action in parsed], [int(action.is_format_valid) for action in parsed]


def clean_command(text: str) -> str:
    """`text` as one command, or "" when it is not one whole command.

    Characters that do not print become blanks, runs of blanks one. A code fence, and a pair of
    quotes, code marks or stars around the whole, are dropped; inside the command they stay.

    >>> clean_command(" `Look  around` ")
    'Look around'
    >>> clean_command('say "hello"')
    'say "hello"'
    """
    if len(text) > MAX_RAW_CHARS:
        return ""  # before looking at every character of it
    lines = [line.strip() for line in _LINE_BREAK.split(text) if line.strip()]
    if len(lines) > 1 and lines[0].startswith(_FENCE) and lines[-1] == _FENCE:
        lines = lines[1:-1]  # with the name of a language, if any
    if len(lines) != 1:
        return ""  # two lines are two commands
    printable = "".join(character if character.isprintable() else " " for character in lines[0])
    command = _without_marks(" ".join(printable.split()))
    is_whole = len(command) <= MAX_COMMAND_CHARS and not _REMAINS.search(command)
    return command if is_whole else ""


def _without_marks(command: str) -> str:
    """`**go**` and `"go"` as `go`, `"a" or "b"` as it is."""
    while command and command[0] in _MARKS:
        mark = command[0]
        inner = command.strip(mark)
        count = len(command) - len(command.lstrip(mark))
        if not inner:
            return ""  # marks around nothing
        if mark in inner or command != mark * count + inner + mark * count:
            break
        command = inner.strip()
    return command
