"""Environment variables that vLLM and its processes read, set before vLLM is imported."""

from __future__ import annotations

import os
from pathlib import Path

QUIET_AND_PRIVATE = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
# Threads may run on any core and OMP_NUM_THREADS says how many: by default vLLM takes all cores
# but one for itself and pins its threads there, whoever else computes on them.
NO_THREAD_BINDING = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
OFFLINE = {"HF_HUB_OFFLINE": "1"}


def prepare_environment(device: str, model_path: str) -> None:
    """Make vLLM quiet, private and a good neighbour. What the user has set stays."""
    variables = dict(QUIET_AND_PRIVATE)
    if device == "cpu":
        variables |= NO_THREAD_BINDING
    if Path(model_path).is_dir():
        variables |= OFFLINE
    for name, value in variables.items():
        os.environ.setdefault(name, value)
