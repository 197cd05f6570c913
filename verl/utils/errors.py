"""The error a user can fix."""


class UserError(Exception):
    """A mistake in the user's input: the message names the value, the reason and the remedy.

    The entry points print it without a traceback and exit with code 2.
    """
