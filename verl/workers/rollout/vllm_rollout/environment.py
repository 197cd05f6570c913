"""The environment variables that vLLM and its processes are started with."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from verl.utils.sockets import socket_folder

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
SOCKET = "/00000000-0000-0000-0000-000000000000"  # how vLLM names one


@contextmanager
def vllm_environment(device: str, model_path: str, more: Mapping[str, str]) -> Iterator[None]:
    """Make vLLM quiet, private and a good neighbour; what the user has set stays.

    Afterwards the variables are as before: vLLM sets some of its own, such as LD_PRELOAD, that
    must not reach the processes which this one starts later.
    """
    logging.getLogger("vllm").setLevel(os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"))
    before = dict(os.environ)
    os.environ.update({**_variables(device, model_path), **more, **before})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _variables(device: str, model_path: str) -> dict[str, str]:
    variables = dict(QUIET_AND_PRIVATE)
    if SOCKET_FOLDER not in os.environ:
        sockets = socket_folder(tempfile.gettempdir(), SOCKET, SOCKET_FOLDER)
        variables |= {SOCKET_FOLDER: sockets}
    if device == "cpu":
        variables |= NO_THREAD_BINDING
    if Path(model_path).is_dir():
        variables |= OFFLINE
    return variables
