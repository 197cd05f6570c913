"""Objects named in the configuration by import path."""

from __future__ import annotations

import importlib
from typing import Any

from verl.utils.errors import UserError


def load_object(path: str) -> Any:
    """The object at `package.module:name`. Raises UserError when there is none."""
    module_name, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"cannot load '{path}' ({error}); give an import path of the form package.module:Name "
            "whose package is installed"
        ) from error
