"""The error a user can fix, and what another one comes from."""

from __future__ import annotations

import textwrap

REASON_CHARS = 300  # of an error in somebody else's words, in a message


class UserError(Exception):
    """A mistake in the user's input: the message names the value, the reason and the remedy.

    The entry points print it without a traceback and exit with code 2.
    """


def root_cause(error: BaseException) -> str:
    """The error that `error` comes from, by its type and in its own words, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    words = textwrap.shorten(str(error), REASON_CHARS, placeholder=" ...")
    return f"{type(error).__name__}: {words}" if words else type(error).__name__
