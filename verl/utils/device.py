"""The accelerator of this process."""

from types import ModuleType

import torch


def get_device_name() -> str:
    """``cuda`` where a GPU is visible, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def get_torch_device() -> ModuleType:
    """``torch.cuda`` or ``torch.cpu``."""
    return getattr(torch, get_device_name())


def get_device_id() -> int | str:
    """What ``tensor.to`` takes for the current device: the GPU's index, or ``cpu``."""
    return torch.cuda.current_device() if torch.cuda.is_available() else "cpu"


def get_nccl_backend() -> str:
    """The collective library that fits the device: ``nccl`` or ``gloo``."""
    return "nccl" if torch.cuda.is_available() else "gloo"
