"""What comes with the repository."""

from __future__ import annotations

from pathlib import Path

SMALL_POLICY = Path(__file__).resolve().parents[2] / "examples" / "small_policy" / "model"
