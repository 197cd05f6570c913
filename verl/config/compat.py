"""Names of the published code that became other names here."""

from __future__ import annotations


def translate_overrides(overrides: list[str]) -> list[str]:
    """Hydra overrides with legacy keys replaced."""
    return overrides
