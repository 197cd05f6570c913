"""What a configuration that came with somebody's checkpoint may not ask for on its own.

Import paths, the code of a model, another Ray cluster: all of them have code run that is not this
project's. Only the user's own command may ask for it.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from verl.config.compose import CONFIG_DIR
from verl.config.fields import Facts, leaves, settings
from verl.utils.errors import UserError


def check_doors(config: Any, given: Collection[str], path: Path) -> None:
    """Refuse a configuration that has strange code run.

    Args:
        config: dataclasses, read from `path` with the user's overrides.
        given: the keys that these overrides set.

    Raises:
        UserError: naming the overrides that would allow it.
    """
    doors = [
        shlex.quote(f"{name}={leaf if isinstance(leaf, str) else json.dumps(leaf)}")
        for key, value, facts in settings(config)
        for name, leaf in leaves(key, value)
        if name not in given and _is_door(leaf, facts)
    ]
    if doors:
        raise UserError(
            f"{path} would have code run that is not this project's, which takes your own word: if "
            f"you trust it, add {' '.join(doors)}"
        )


def _is_door(value: Any, facts: Facts) -> bool:
    if facts.door:
        return bool(value)
    own = {*facts.choices, *shipped_paths()}
    return facts.open and any(":" in text and text not in own for text in _texts(value))


@cache
def shipped_paths() -> frozenset[str]:
    """The import paths in the presets of this project."""
    presets = (yaml.safe_load(file.read_bytes()) for file in CONFIG_DIR.rglob("*.yaml"))
    return frozenset(text for preset in presets for text in _texts(preset) if ":" in text)


def _texts(value: Any) -> Iterator[str]:
    """All strings in plain data."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)
