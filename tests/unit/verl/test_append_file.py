"""A disk without room: lines wait, in order, and none is torn; the words say it once."""

import logging

import pytest

from verl.utils.append_file import AppendFile
from verl.utils.logging import setup_logging

LINES = [f"line {i:03}\n" for i in range(6)]  # of 9 bytes


def test_lines_wait_for_room_and_come_in_order(tmp_path, no_file_beyond, caplog):
    file = AppendFile(tmp_path / "new" / "lines")
    with no_file_beyond(22):  # two lines and 4 bytes
        for line in LINES[:5]:
            file.append(line)
        assert file.path.read_text() == "".join(LINES)[:22]
        assert file.missing == 3
    file.append(LINES[5])
    assert file.path.read_text() == "".join(LINES)
    assert file.missing == 0
    first, second = caplog.messages
    assert "(File too large): its lines are kept" in first and "again; 0 lines are lost" in second


def test_what_waits_is_bounded(tmp_path, no_file_beyond):
    file = AppendFile(tmp_path / "lines", kept_bytes=20)
    with no_file_beyond(0):
        for line in LINES:
            file.append(line)
        file.close()
        assert file.missing == 6  # 2 of 9 bytes each wait, 4 are dropped
    file.close()
    assert file.path.read_text() == "".join(LINES[:2]) and file.missing == 4


def test_a_file_that_cannot_be_opened_is_opened_later(tmp_path):
    (tmp_path / "rollouts").touch()
    file = AppendFile(tmp_path / "rollouts" / "lines")
    file.append(LINES[0])
    (tmp_path / "rollouts").unlink()
    file.append(LINES[1])
    assert file.path.read_text() == "".join(LINES[:2])


@pytest.mark.usefixtures("restored_logging")
def test_the_log_of_a_run_waits_for_room_without_a_traceback(tmp_path, no_file_beyond, capfd):
    logging.getLogger().handlers.clear()  # pytest's cannot hand such a text to another process
    setup_logging(file=tmp_path / "run.log")
    log = logging.getLogger("verl.x")
    with no_file_beyond(0):
        log.info("first \ud800")
        log.info("second")
    log.info("third")
    words = [line.split(": ", 1)[1] for line in (tmp_path / "run.log").read_text().splitlines()]
    assert [words[0], words[2], words[3]] == ["first \\ud800", "second", "third"]
    assert "run.log cannot be written to" in words[1] and "again; 0 lines" in words[4]
    assert "Traceback" not in capfd.readouterr().err
