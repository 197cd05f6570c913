"""Keys, tokens and passwords: who gets them, and that no file keeps them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

SECRET = re.compile(
    r"(^|_)(KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|AUTH|COOKIE)$", re.IGNORECASE
)

MASK = "***"


def looks_secret(name: str) -> bool:
    """Whether a variable or setting of that name holds a key, a token or a password."""
    return SECRET.search(name) is not None


def without_secrets(variables: Mapping[str, str], passed: Collection[str]) -> dict[str, str]:
    """`variables` but for secrets that are not `passed` by name."""
    return {
        name: value for name, value in variables.items() if name in passed or not looks_secret(name)
    }


def masked(value: Any, name: str = "") -> Any:
    """Plain data with `MASK` for every text whose name looks like a secret's."""
    if isinstance(value, dict):
        return {key: masked(inner, str(key)) for key, inner in value.items()}
    if isinstance(value, list):
        return [masked(inner, name) for inner in value]
    return MASK if isinstance(value, str) and value and looks_secret(name) else value
