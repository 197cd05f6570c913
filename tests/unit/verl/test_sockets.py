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
import ray
from verl.config.trainer import RayInitConfig
from verl.trainer.session import ray_cluster
with ray_cluster(RayInitConfig(), 1):
    print(ray.get(ray.put("it runs")))
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
        UserError, match=r"too long for a socket.*set RAY_TMPDIR.* at most 35 bytes"
    ):
        socket_folder(LONG, RAY_SOCKET, "RAY_TMPDIR")  # 103 - 68


@pytest.mark.slow
def test_ray_starts_with_a_long_folder_for_temporary_files(tmp_path):
    folder = tmp_path / LONG.strip("/")
    folder.mkdir(parents=True)
    run = subprocess.run(
        [sys.executable, "-c", START_RAY],
        env={**os.environ, "TMPDIR": str(folder), "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.stdout == "it runs\n", run.stderr[-2000:]
