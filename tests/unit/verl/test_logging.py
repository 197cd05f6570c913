"""Log lines and progress, as they reach stderr and the log file."""

import io
import logging
import re
import sys
import warnings

import pytest
from tqdm import tqdm

from verl.utils import logging as run_logging
from verl.utils.logging import ConsoleHandler, LoggedProgress, progress, setup_logging

pytestmark = pytest.mark.usefixtures("restored_logging")


def lines(capsys):
    return capsys.readouterr().err.splitlines()


def test_line_has_time_short_name_and_message(capsys):
    setup_logging()
    log = logging.getLogger("verl.trainer.ppo.ray_trainer")
    log.info("step %d", 3)
    log.warning("slow")
    log.debug("hidden")
    first, second = lines(capsys)
    assert re.fullmatch(r"\d\d:\d\d:\d\d ray_trainer: step 3", first)
    assert re.fullmatch(r"\d\d:\d\d:\d\d WARNING ray_trainer: slow", second)


def test_worker_lines_are_marked(capsys):
    setup_logging(worker=1)
    logging.getLogger("verl.workers.fsdp_workers").info("ready")
    assert lines(capsys)[0].endswith(" [worker 1] fsdp_workers: ready")


def test_exceptions_keep_their_traceback(capsys):
    setup_logging()
    try:
        raise RuntimeError("boom")
    except RuntimeError:
        logging.getLogger("verl.x").exception("failed")
    written = lines(capsys)
    assert written[0].endswith("ERROR x: failed")
    assert written[-1] == "RuntimeError: boom"


def test_calling_again_replaces_the_handlers(capsys, tmp_path):
    logging.getLogger().addHandler(logging.StreamHandler(sys.stderr))  # as Hydra does
    setup_logging()
    setup_logging(file=tmp_path / "logs" / "run.log")
    logging.getLogger("epo").info("once")
    assert len(lines(capsys)) == 1
    setup_logging(file=tmp_path / "logs" / "run.log")  # a resumed run appends
    logging.getLogger("epo").info("twice")
    text = (tmp_path / "logs" / "run.log").read_text()
    assert [line.rpartition("INFO ")[2] for line in text.splitlines()] == [
        "epo: once",
        "epo: twice",
    ]


def test_level_and_quiet_libraries(capsys):
    setup_logging(level="DEBUG")
    logging.getLogger("verl.x").debug("mine")
    logging.getLogger("httpx").info("GET /")
    logging.getLogger("ray.worker").info("started")
    logging.getLogger("py4j.clientserver").error("lost")
    assert [line.rpartition(" ")[2] for line in lines(capsys)] == ["mine", "lost"]
    with pytest.raises(ValueError, match="LOUD"):
        setup_logging(level="LOUD")


def test_python_warnings_are_logged(capsys):
    setup_logging()
    warnings.warn("old option", UserWarning, stacklevel=1)
    first = lines(capsys)[0]
    assert "WARNING warnings:" in first
    assert "UserWarning: old option" in first


def test_other_handlers_are_left_alone():
    foreign = logging.NullHandler()
    root = logging.getLogger()
    root.addHandler(foreign)
    setup_logging()
    assert foreign in root.handlers
    root.removeHandler(foreign)


def test_a_line_is_written_beside_a_bar_not_into_it(capsys):
    setup_logging()
    with tqdm(total=2, desc="episodes", file=sys.stderr) as bar:
        bar.update()
        logging.getLogger("verl.x").info("between")
    # tqdm clears the bar's line (carriage return) before the message, which gets a line of its own
    assert re.search(r"\r\d\d:\d\d:\d\d x: between\n", capsys.readouterr().err)


def test_a_closed_stream_does_not_stop_the_program(monkeypatch):
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(logging, "raiseExceptions", False)
    ConsoleHandler().emit(logging.LogRecord("x", logging.INFO, "", 0, "lost", (), None))


class Clock:
    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(run_logging.time, "monotonic", lambda: self.now)


def test_progress_away_from_a_terminal_is_a_line_every_20_seconds(monkeypatch, caplog):
    clock = Clock(monkeypatch)
    with caplog.at_level(logging.INFO), progress(total=10, description="episodes") as bar:
        for _ in range(10):
            clock.now += 8.0
            bar.update()
    # 8 s an episode: lines at 24, 48, 72 s and at the end
    assert caplog.messages == [
        "episodes 3/10, 24 s, about 56 s left",  # 24/3 * 7
        "episodes 6/10, 48 s, about 32 s left",
        "episodes 9/10, 72 s, about 8 s left",
        "episodes 10/10, 80 s",
    ]


def test_fast_progress_is_silent(monkeypatch, caplog):
    clock = Clock(monkeypatch)
    with caplog.at_level(logging.INFO), progress(total=3, description="episodes") as bar:
        clock.now += 19.0
        bar.update(3)
    assert not caplog.messages


def test_progress_iterates(monkeypatch, caplog):
    clock = Clock(monkeypatch)
    seen = []
    with caplog.at_level(logging.INFO):
        for item in progress(iter("abc"), "letters"):
            seen.append(item)
            clock.now += 30.0
    assert seen == ["a", "b", "c"]
    assert caplog.messages[0] == "letters 1, 30 s"  # an iterator has no length
    assert str(LoggedProgress(range(4), "steps")) == "steps 0/4, 0 s"


def test_progress_on_a_terminal_is_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    bar = progress(range(3), "steps")
    assert isinstance(bar, tqdm)
    assert list(bar) == [0, 1, 2]
    assert "steps" in capsys.readouterr().err


def test_escapes_reach_neither_terminal_nor_file(tmp_path, capsys):
    setup_logging(file=tmp_path / "run.log")
    logging.getLogger("x").warning("\x1b[2Jcleared\rforged")
    written = (tmp_path / "run.log").read_text(), capsys.readouterr().err
    for text in written:
        assert "\\x1b[2Jcleared\\rforged\n" in text and "\x1b" not in text
