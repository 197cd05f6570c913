"""Tests that need what this machine lacks are skipped, with the reason."""

from __future__ import annotations

import importlib.util

import pytest
import torch


def _missing(package: str) -> str | None:
    return None if importlib.util.find_spec(package) else f"{package} is not installed"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reasons = {
        "gpu": None if torch.cuda.is_available() else "no CUDA device",
        "vllm": _missing("vllm"),
        "alfworld": _missing("alfworld"),
    }
    for item in items:
        for marker, reason in reasons.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))
