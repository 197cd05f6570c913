"""The error a user can fix, what another one comes from, and what is known on its way out."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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


class WorkerDiedError(Exception):
    """A process that the run cannot do without is gone; the message says which, when and why.

    The run can go on from its last checkpoint.
    """


def in_short(error: BaseException) -> str:
    """The error in its own words, on one line."""
    return one_line(textwrap.shorten(str(error), REASON_CHARS, placeholder=" ..."))


def root_cause(error: BaseException) -> str:
    """The error that `error` comes from, by its type and in its own words, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    words = in_short(error)
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


@contextmanager
def noting(note: Callable[[], str]) -> Iterator[None]:
    """An error that leaves the block takes `note()` along, for the sentence in which it ends."""
    try:
        yield
    except BaseException as error:
        error.add_note(note())
        raise
