"""The environment variables that vLLM and its processes are started with."""

from __future__ import annotations

import getpass
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from verl.utils.sockets import socket_folder
from verl.utils.temporary import FOLDER, temporary_folder

QUIET_AND_PRIVATE = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    # what Python's helper process says when a process was killed and left shared memory to it
    "PYTHONWARNINGS": "ignore:resource_tracker:UserWarning,ignore::FutureWarning",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
# Threads may run on any core and OMP_NUM_THREADS says how many: by default vLLM takes all cores
# but one for itself and pins its threads there, whoever else computes on them.
NO_THREAD_BINDING = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
OFFLINE = {"HF_HUB_OFFLINE": "1"}
SOCKET_FOLDER = "VLLM_RPC_BASE_PATH"
COMPILED = "TORCHINDUCTOR_CACHE_DIR"
SOCKET = "/00000000-0000-0000-0000-000000000000"  # how vLLM names one


@contextmanager
def vllm_environment(
    device: str, model_path: str, more: Mapping[str, str], folder: Path | None = None
) -> Iterator[None]:
    """Make vLLM quiet, private and a good neighbour; what the user has set stays.

    Afterwards the variables are as before: vLLM sets some of its own, such as LD_PRELOAD, that
    must not reach the processes which this one starts later.

    Args:
        folder: of `vllm_folder`; takes the sockets and temporary files of vLLM's processes.
    """
    logging.getLogger("vllm").setLevel(os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"))
    before, remembered = dict(os.environ), tempfile.tempdir
    os.environ.update({**_variables(device, model_path), **more, **before})
    if folder is not None:
        os.environ.update({SOCKET_FOLDER: str(folder), **before, **_temporary_files(folder)})
        tempfile.tempdir = str(folder)  # a process that is forked asks no variable
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        tempfile.tempdir = remembered


def vllm_folder() -> AbstractContextManager[Path]:
    """A folder for what vLLM's processes leave in the folder for temporary files."""
    if SOCKET_FOLDER in os.environ:
        return temporary_folder(tempfile.gettempdir())
    return temporary_folder(socket_folder(tempfile.gettempdir(), FOLDER + SOCKET, SOCKET_FOLDER))


def _temporary_files(folder: Path) -> dict[str, str]:
    """All but what torch compiles, which is to be found again by the next run."""
    compiled = Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}"
    return {"TMPDIR": str(folder), COMPILED: os.environ.get(COMPILED, str(compiled))}


def _variables(device: str, model_path: str) -> dict[str, str]:
    variables = dict(QUIET_AND_PRIVATE)
    if device == "cpu":
        variables |= NO_THREAD_BINDING
    if Path(model_path).is_dir():
        variables |= OFFLINE
    return variables
