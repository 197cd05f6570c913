"""A TMPDIR as long as a cluster's: sockets go where their paths fit, or a sentence says why not."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from verl.trainer.session import RAY_SOCKET
from verl.utils import sockets
from verl.utils.errors import UserError
from verl.utils.sockets import socket_folder

REPO = Path(__file__).parents[3]
LONG = "/scratch/slurm_tmpdir/project_0123456789/user_name/job_1234567.node-0123"  # 72 bytes
START_RAY = """
from pathlib import Path
import ray
from verl.config.trainer import RayInitConfig
from verl.trainer.session import ray_cluster
with ray_cluster(RayInitConfig(), 1):
    print(ray.get(ray.put("it runs")))
    print(ray._private.worker._global_node.get_session_dir_path())
try:
    with ray_cluster(RayInitConfig(), 1, Path("run")):
        raise RuntimeError
except RuntimeError:
    print(Path("run/ray_logs/raylet.out").is_file())
"""


def test_a_folder_is_taken_as_long_as_the_socket_fits():
    fits = "/" + "f" * (sockets.MAX_PATH - len("/s") - 1)
    assert socket_folder(fits, "/s", "V") == fits
    assert socket_folder(fits + "f", "/s", "V") == "/tmp"
    assert socket_folder(LONG, RAY_SOCKET, "RAY_TMPDIR") == "/tmp"


def test_the_longest_path_that_is_taken_can_be_bound(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("s" * sockets.MAX_PATH)


def test_without_a_short_folder_one_sentence_says_what_to_set(monkeypatch):
    monkeypatch.setattr(sockets, "SHORT", "/no/such/folder")
    with pytest.raises(
        UserError, match=r"too long for a socket.*set RAY_TMPDIR.* at most 24 bytes"
    ):
        socket_folder(LONG, RAY_SOCKET, "RAY_TMPDIR")  # 103 - 79


@pytest.mark.slow
def test_ray_starts_with_a_long_folder_for_temporary_files_and_leaves_nothing(tmp_path):
    folder = tmp_path / LONG.strip("/")
    folder.mkdir(parents=True)
    run = subprocess.run(
        [sys.executable, "-c", START_RAY],
        env={**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        timeout=240,
        cwd=tmp_path,
    )
    text, made, logs = run.stdout.splitlines()
    assert (text, logs) == ("it runs", "True"), run.stderr[-2000:]
    assert Path(made).parent.parent == Path("/tmp") and not Path(made).parent.exists()
    assert list(folder.iterdir()) == []
