"""The error a user can fix, and what another one comes from."""

from __future__ import annotations

import re
import textwrap

REASON_CHARS = 300  # of an error in somebody else's words, in a message
LONG_WORD = re.compile(r"(\S{80})\S{200,}(\S{80})")


class UserError(Exception):
    """A mistake in the user's input: the message names the value, the reason and the remedy.

    The entry points print it without a traceback and exit with code 2. A value that is too long to
    read is shown by its two ends, and what would move the cursor as an escape.
    """

    def __init__(self, message: str) -> None:
        super().__init__(LONG_WORD.sub(r"\1...\2", one_line(message)))


def one_line(text: str) -> str:
    """The text with its control characters written out, so that a terminal shows and never obeys
    them, and with what UTF-8 cannot hold."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def root_cause(error: BaseException) -> str:
    """The error that `error` comes from, by its type and in its own words, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    words = one_line(textwrap.shorten(str(error), REASON_CHARS, placeholder=" ..."))
    return f"{type(error).__name__}: {words}" if words else type(error).__name__
