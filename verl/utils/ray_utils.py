"""Small helpers around Ray."""

from __future__ import annotations

import os
import textwrap
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError

from verl.utils.errors import REASON_CHARS

# Ray hides the devices of other workers, unless one of these switches it off for an accelerator.
_NOSET_VISIBLE_DEVICES = (
    "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES",
    "RAY_EXPERIMENTAL_NOSET_ROCR_VISIBLE_DEVICES",
    "RAY_EXPERIMENTAL_NOSET_HIP_VISIBLE_DEVICES",
    "RAY_EXPERIMENTAL_NOSET_ASCEND_RT_VISIBLE_DEVICES",
)
_MAX_PUT_THREADS = 16


def ray_noset_visible_devices(env_vars: dict[str, str] | None = None) -> bool:
    """Whether workers see all devices of their node, and must choose theirs by index."""
    env_vars = dict(os.environ) if env_vars is None else env_vars
    return any(env_vars.get(key) for key in _NOSET_VISIBLE_DEVICES)


def parallel_put(data_list: list[Any], max_workers: int | None = None) -> list[ray.ObjectRef]:
    """Put objects into Ray's object store from several threads; references in the same order.

    Copying into the store releases the interpreter lock, so that large batches gain from threads.

    Raises:
        AssertionError: the list is empty.
    """
    assert len(data_list) > 0, "data_list must not be empty"
    with ThreadPoolExecutor(max_workers or min(len(data_list), _MAX_PUT_THREADS)) as pool:
        return list(pool.map(ray.put, data_list))


def death_reason(error: RayActorError) -> str:
    """Why an actor died, as far as Ray knows, in half a sentence."""
    text = str(error)
    if isinstance(error, ActorUnavailableError) or "its node has died" in text:
        return "it cannot be reached: its process or its machine is gone"
    if "killed by `ray.kill`" in text:
        return "it did not answer and was killed"
    if "End of file" in text and "exit detail" in text:  # Ray's word for a process that is gone
        return "its process ended: killed, out of memory (see the system's log), or crashed"
    return textwrap.shorten(text.rpartition("exit detail: ")[2], REASON_CHARS, placeholder=" ...")
