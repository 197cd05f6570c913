"""Weights on their way into vLLM's processes: files in shared memory.

vLLM's workers are processes of their own and load weights from files. In /dev/shm such a file is
memory that they map; nothing is written to a disk and nothing but the file itself is a copy.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import TensorSpec, serialize_file

from verl.workers.weight_sync import LoraAdapter, PackedWeights

SHARED_MEMORY = Path("/dev/shm")


@contextmanager
def weight_file(weights: PackedWeights, adapter: LoraAdapter | None = None) -> Iterator[Path]:
    """A safetensors file with `weights`, for as long as the context lasts; with `adapter`, in a
    folder as peft saves one."""
    parent = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="rollout_weights_", dir=parent) as folder:
        if adapter is not None:
            settings = adapter_settings(weights, adapter)
            Path(folder, "adapter_config.json").write_text(json.dumps(settings))
        file = Path(folder, "adapter_model.safetensors")
        _write(file, weights)
        yield file


def adapter_settings(weights: PackedWeights, adapter: LoraAdapter) -> dict[str, Any]:
    """peft's description of an adapter."""
    return {
        "peft_type": "LORA",
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "target_modules": adapted_modules(weights),
    }


def adapted_modules(names: Iterable[str]) -> list[str]:
    """The last parts of the names of the layers that have adapters, such as q_proj."""
    return sorted({name.split(".lora_")[0].rpartition(".")[2] for name in names})


def _write(path: Path, weights: PackedWeights) -> None:
    specs = {
        name: TensorSpec(
            dtype=dtype, shape=shape, data_ptr=content.ctypes.data, data_len=content.nbytes
        )
        for name, (dtype, shape, content) in weights.items()
    }
    serialize_file(specs, str(path))


def zeros(shapes: Mapping[str, tuple[int, ...]]) -> PackedWeights:
    """Float32 tensors of zeros: an adapter that changes nothing."""
    return {
        name: ("float32", shape, np.zeros(4 * math.prod(shape), dtype=np.uint8))
        for name, shape in shapes.items()
    }
