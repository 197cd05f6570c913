"""A temporary folder that goes with its process: at its end, or by the next one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from verl.utils.temporary import FOLDER, temporary_folder

REPO = Path(__file__).parents[3]
HOLD = """
import sys
from verl.utils.temporary import temporary_folder
with temporary_folder(sys.argv[1]) as folder:
    (folder / "session").mkdir()
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that has a temporary folder, and the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(REPO)},
    )
    assert process.stdout is not None
    folder = Path(process.stdout.readline().decode().strip())
    try:
        yield process, folder
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_it_is_gone_afterwards(tmp_path, error):
    try:
        with temporary_folder(tmp_path) as folder:
            (folder / "session" / "logs").mkdir(parents=True)
            (folder / "session_latest").symlink_to(folder / "session")
            assert len(f"/{folder.name}") == len(FOLDER)
            if error is not None:
                raise error
    except KeyboardInterrupt:
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_a_living_process_stays_and_of_a_dead_one_goes(tmp_path, holder):
    process, folder = holder
    with temporary_folder(tmp_path):
        assert (folder / "session").is_dir()
    process.kill()
    process.wait()
    assert (folder / "session").is_dir()
    with temporary_folder(tmp_path) as own:
        assert list(tmp_path.iterdir()) == [own]


def test_folders_of_others_stay(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / ".lock").touch()
    (tmp_path / ".verl-abcdefgh").mkdir()  # nobody has claimed it
    (tmp_path / ".verl-of_somebody").mkdir()
    (tmp_path / ".verl-of_somebody" / ".lock").touch()
    (tmp_path / ".verl-ijklmnop").symlink_to(tmp_path / "elsewhere")
    before = sorted(tmp_path.rglob("*"))
    with temporary_folder(tmp_path):
        pass
    assert sorted(tmp_path.rglob("*")) == before
