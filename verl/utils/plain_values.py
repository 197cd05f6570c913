"""What `torch.save` wrote, read back without executing anything of it."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch


def load_plain(file: Path | io.BytesIO, name: str) -> Any:
    """The tensors and plain Python values in `file`, which messages call `name`.

    Raises:
        OSError: the file cannot be read.
        pickle.UnpicklingError: it is damaged, or holds any other object.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception:  # a damaged file makes torch raise anything
        raise pickle.UnpicklingError(
            f"{name} is damaged, or holds more than tensors and plain values"
        ) from None  # torch's own words tell how to execute it all the same
