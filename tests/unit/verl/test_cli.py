"""What an entry point prints and returns when something goes wrong."""

from __future__ import annotations

import pytest

from verl.trainer.cli import run_cli
from verl.utils.errors import UserError


class RemoteUserError(UserError):
    """As Ray hands it over: also a UserError, its text the remote traceback, the error as cause."""

    def __init__(self, cause):
        super().__init__("ray::Worker.init() (pid=1)\\nTraceback (most recent call last): ...")
        self.cause = cause


def exit_code(error):
    def main(arguments):
        raise error

    with pytest.raises(SystemExit) as stopped:
        run_cli(main)
    return stopped.value.code


@pytest.mark.parametrize("wrap", [lambda error: error, RemoteUserError])
def test_a_mistake_is_one_sentence_wherever_it_was_found(wrap, capsys):
    assert exit_code(wrap(UserError("x=1 is too small; use 2"))) == 2
    assert capsys.readouterr().err == "error: x=1 is too small; use 2\n"


def test_a_value_that_is_long_or_moves_the_cursor_is_shown_as_one_short_line():
    sentence = str(UserError(f"x={'a' * 5000} is unknown\n\x1b[2J; use y"))
    assert sentence == f"x={'a' * 78}...{'a' * 80} is unknown\\n\\x1b[2J; use y"
    assert str(UserError(sentence)) == sentence  # also after it was sent from another process


def test_an_interruption_has_the_usual_exit_code():
    assert exit_code(KeyboardInterrupt()) == 130


def test_other_errors_keep_their_traceback():
    def main(arguments):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run_cli(main)
