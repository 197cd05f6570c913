"""One run a folder, nothing of a killed one left in it, and a sentence where it cannot be used."""

import errno
import fcntl
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from verl.config.trainer import RunConfig
from verl.trainer import main_ppo, main_sft
from verl.trainer.run_folder import check_run_folder, open_run_folder
from verl.utils.errors import UserError
from verl.utils.folder_lock import LOCK_FILE, locked_folder

REPO = Path(__file__).parents[3]
HOLD = """
import sys
from pathlib import Path
from verl.utils.folder_lock import locked_folder
with locked_folder(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def run_in(folder) -> RunConfig:
    return RunConfig(default_local_dir=str(folder))


def content(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def holder(tmp_path):
    """A process that has the run folder; its pid is in the lock."""
    folder = tmp_path / "run"
    folder.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(REPO)},
    )
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    try:
        yield process, folder
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("main", "command"),
    [
        (main_ppo.main, ["--config-name", "quickstart", "trainer.device=cpu"]),
        (main_sft.main, ["model.path=small", "data.train_files=[a.jsonl]"]),
    ],
)
def test_a_second_run_is_refused_before_it_touches_anything(holder, main, command):
    process, folder = holder
    before = content(folder)
    with pytest.raises(UserError, match=rf"in use by process {process.pid} on .*; wait") as caught:
        main([*command, f"trainer.default_local_dir={folder}"])
    assert "\n" not in str(caught.value)
    assert content(folder) == before and not ray.is_initialized()
    with pytest.raises(UserError, match="in use"), open_run_folder(run_in(folder)):
        pass
    assert content(folder) == before


def test_the_lock_of_a_killed_process_is_free(holder):
    process, folder = holder
    process.kill()
    process.wait()
    check_run_folder(run_in(folder))
    with open_run_folder(run_in(folder)):
        assert f"process {os.getpid()} " in (folder / LOCK_FILE).read_text()


def test_a_child_process_does_not_keep_the_lock(tmp_path):
    with locked_folder(tmp_path):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        with locked_folder(tmp_path) as held:
            assert held
    finally:
        child.kill()
        child.wait()


def leave_unfinished(folder):
    """What a kill in the middle of writing leaves: files and folders, also beside the report."""
    for part in (folder, folder / "report", folder / "eval_global_step_2"):
        (part / ".unfinished-global_step_3-0a" / "actor").mkdir(parents=True)
        (part / ".unfinished-metrics.jsonl-0b").write_text("{")
    (folder / "eval_global_step_2" / LOCK_FILE).touch()


def unfinished(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(".unfinished-*"))


def test_what_a_killed_run_left_is_removed_but_not_from_an_evaluation(tmp_path):
    leave_unfinished(tmp_path)
    with open_run_folder(run_in(tmp_path)):
        assert unfinished(tmp_path) == [
            "eval_global_step_2/.unfinished-global_step_3-0a",
            "eval_global_step_2/.unfinished-metrics.jsonl-0b",
        ]


def test_without_locks_it_says_so_and_leaves_what_may_be_anothers(tmp_path, monkeypatch, caplog):
    def unsupported(descriptor, operation):
        raise OSError(errno.ENOTSUP, "not supported")

    leave_unfinished(tmp_path)
    before = unfinished(tmp_path)
    monkeypatch.setattr(fcntl, "flock", unsupported)
    with caplog.at_level(logging.WARNING), open_run_folder(run_in(tmp_path)):
        assert unfinished(tmp_path) == before
    assert "has no locks" in caplog.text


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("file", r"File exists\); it is a file"),
        ("file/run", r"Not a directory\); a part of this path is a file"),
        ("n" * 300, r"File name too long\); choose a shorter name"),
    ],
)
def test_a_path_that_is_no_folder_is_refused_before_anything_is_made(tmp_path, name, reason):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"default_local_dir=.*{reason}"):
        check_run_folder(run_in(tmp_path / name))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_nobody_may_write_to_is_refused():
    folder = Path("/sys/a_run")  # whoever asks, the superuser too
    with pytest.raises(UserError, match="cannot be written to"), open_run_folder(run_in(folder)):
        pass
    assert not folder.exists()


FILL_AND_START = """
from contextlib import suppress
from verl.config.trainer import RunConfig
from verl.trainer.run_folder import open_run_folder
from verl.trainer.session import record_run
from verl.utils.errors import UserError
fill = open("fill", "wb", buffering=0)
for free in (4096, 0):
    with suppress(OSError):
        while True:
            fill.write(bytes(4096))
    fill.truncate(fill.tell() - free)
    try:
        with open_run_folder(RunConfig(default_local_dir=f"run_{free}")) as folder:
            record_run(folder, {}, {})
    except UserError as error:
        print(error)
"""


@pytest.mark.slow
def test_a_full_disk_at_the_start_is_one_sentence(on_small_disk):
    lines = on_small_disk(FILL_AND_START, "64k").splitlines()
    assert len(lines) == 2  # room for the lock alone, and not for that either
    for line in lines:
        assert line.endswith(
            "(No space left on device); make room, or choose a folder on another disk"
        )
