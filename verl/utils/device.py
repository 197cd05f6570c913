"""The accelerator of this process."""

import torch


def get_device_name() -> str:
    """``cuda`` where a GPU is visible, else ``cpu``."""
    return "cuda" if torch.cuda.is_available() else "cpu"
