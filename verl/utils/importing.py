"""Choices of the configuration: a built-in name, or the import path of the user's own object."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from verl.utils.errors import UserError, root_cause


def resolve_choice(key: str, choice: str, built_in: Mapping[str, Any]) -> Any:
    """What `key=choice` names. Whoever needs the object calls this, in its own process.

    Args:
        choice: a name in `built_in`, or `package.module:object`.
        built_in: the objects by name; one given as an import path is loaded when it is chosen.

    Raises:
        UserError: an unknown name, or nothing at the import path.
    """
    if choice in built_in:
        entry = built_in[choice]
        return load_object(entry) if isinstance(entry, str) else entry
    if ":" in choice:
        return load_object(choice)
    raise UserError(
        f"{key}={choice} is unknown; available: {', '.join(built_in)}, or an import path "
        "of your own, package.module:object"
    )


def load_object(path: str) -> Any:
    """The object at `package.module:name`. Raises UserError when there is none."""
    module_name, _, attribute = path.partition(":")
    try:
        if not attribute:
            raise ImportError("it names no object")  # before the module's code is run
        return getattr(importlib.import_module(module_name), attribute)
    except Exception as error:  # whatever the code of others raises
        raise UserError(
            f"cannot load '{path}' ({root_cause(error)}); give an import path of the form "
            "package.module:Name whose package is installed"
        ) from error
