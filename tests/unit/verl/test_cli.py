"""What an entry point prints and returns when something goes wrong."""

from __future__ import annotations

import errno
import logging

import pytest
from ray.exceptions import ActorUnavailableError, RayTaskError

from verl.trainer.cli import run_cli
from verl.trainer.endings import telling_what_stands, users_line
from verl.trainer.stop_requests import ClusterLostError, Terminated
from verl.utils.errors import UserError, WorkerDiedError, noting
from verl.utils.logging import setup_logging


def remote(error):
    """As Ray hands over an error of a worker."""
    text = f"ray::Worker.init() (pid=1)\nTraceback (most recent call last): ...\n{error!r}"
    return RayTaskError("init", text, error, ip="10.0.0.1").as_instanceof_cause()


def ending(monkeypatch, error):
    """(exit code, stderr) of a command that raises."""

    def main(arguments):
        raise error

    monkeypatch.setattr("sys.argv", ["command"])
    with pytest.raises(SystemExit) as stopped:
        run_cli(main)
    return stopped.value.code


@pytest.mark.parametrize("wrap", [lambda error: error, remote, lambda error: remote(remote(error))])
def test_a_mistake_is_one_sentence_wherever_it_was_found(wrap, monkeypatch, capsys):
    assert ending(monkeypatch, wrap(UserError("x=1 is too small; use 2"))) == 2
    assert capsys.readouterr().err == "error: x=1 is too small; use 2\n"


def test_a_value_that_is_long_or_moves_the_cursor_is_shown_as_one_short_line():
    sentence = str(UserError(f"x={'a' * 5000} is unknown\n\x1b[2J; use y"))
    assert sentence == f"x={'a' * 78}...{'a' * 80} is unknown\\n\\x1b[2J; use y"
    assert str(UserError(sentence)) == sentence  # also after it was sent from another process


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (WorkerDiedError("training rank 1 died"), 3, "training rank 1 died"),
        (ClusterLostError("Ray's raylet died"), 3, "Ray's raylet died"),
        (ActorUnavailableError("no route", None), 3, "Ray lost a part of the run (Actor"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/d/x"),
            4,
            "disk refuses: [Errno 28] No",
        ),
        (remote(OSError(errno.EIO, "Input/output error")), 4, "disk refuses: [Errno 5] Input"),
        (Terminated(), 143, "stopped by SIGTERM"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_every_ending_is_one_line_with_its_code(error, code, sentence, monkeypatch, capsys):
    assert ending(monkeypatch, error) == code
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {sentence}" if code != 4 else f"error: the {sentence}")
    assert printed.count("\n") == 1


def test_what_an_error_passes_on_its_way_out_is_in_the_sentence(monkeypatch, capsys):
    error = WorkerDiedError("rank 1 died")
    with pytest.raises(WorkerDiedError), noting(lambda: "it was in step 3 of 5"):
        raise error
    ending(monkeypatch, error)
    assert capsys.readouterr().err == "error: rank 1 died; it was in step 3 of 5\n"


@pytest.mark.parametrize(
    ("saved", "mode", "told"),
    [
        ([2, 10], "auto", "/global_step_10 stands: the same command goes on from step 10"),
        ([2], "disable", "the same command with trainer.resume_mode=auto goes on from step 2"),
        ([], "auto", "there is no checkpoint yet: the same command begins anew"),
    ],
)
def test_the_newest_checkpoint_is_named(saved, mode, told, tmp_path):
    from verl.config.trainer import SessionConfig

    for step in saved:
        (tmp_path / f"global_step_{step}").mkdir()
    run = SessionConfig(default_local_dir=str(tmp_path), resume_mode=mode)
    with pytest.raises(ValueError) as caught, telling_what_stands(run):
        raise ValueError
    assert caught.value.__notes__[0].endswith(told)


def test_a_bug_shows_its_traceback_where_there_is_no_log(monkeypatch, capsys):
    assert ending(monkeypatch, RuntimeError("a bug")) == 1
    printed = capsys.readouterr().err
    assert "Traceback" in printed
    assert printed.splitlines()[-1].startswith("error: RuntimeError: a bug")


def test_a_bug_is_one_sentence_and_its_traceback_in_the_log(monkeypatch, capsys, tmp_path):
    def main(arguments):
        setup_logging(file=tmp_path / "run.log")
        raise RuntimeError("a bug")

    monkeypatch.setattr("sys.argv", ["command"])
    try:
        with pytest.raises(SystemExit) as stopped:
            run_cli(main)
    finally:
        setup_logging()
    printed = capsys.readouterr().err
    assert stopped.value.code == 1 and printed.count("\n") == 1
    assert f"RuntimeError: a bug at {__file__}:" in printed
    assert f"; traceback in {tmp_path / 'run.log'}" in printed
    assert "Traceback (most recent call last)" in (tmp_path / "run.log").read_text()


def test_code_of_the_users_own_is_named_also_of_a_worker(tmp_path):
    ours = logging.__file__  # installed, as verl is: not where the user looks
    trace = f'File "/home/me/my_env.py", line 7, in step\n  File "{ours}", line 3, in x'
    assert users_line(RayTaskError("f", trace, None, ip="10.0.0.1")) == "/home/me/my_env.py:7"
    assert users_line(ValueError()) is None
