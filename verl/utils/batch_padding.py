"""Padding of a :class:`verl.protocol.DataProto` to a length that the workers can share."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from verl.protocol.batch import DataProto

logger = logging.getLogger(__name__)


class _DataProtoConfigMeta(type):
    auto_padding_key = "_verl_auto_padding"
    _auto_padding = False

    @property
    def auto_padding(cls) -> bool:
        """Whether worker groups pad every batch that their size does not divide.

        The environment variable ``VERL_AUTO_PADDING=1`` switches it on as well.
        """
        by_environment = os.getenv("VERL_AUTO_PADDING", "").lower() in ("1", "true")
        return by_environment or cls._auto_padding

    @auto_padding.setter
    def auto_padding(cls, enabled: bool) -> None:
        assert isinstance(enabled, bool), f"auto_padding must be a bool, not {enabled!r}"
        cls._auto_padding = enabled


class DataProtoConfig(metaclass=_DataProtoConfigMeta):
    """Process-wide switches of :class:`DataProto`, kept for verl's API. Off by default.

    Padding repeats rows, which is harmless for inference and biases a gradient. Prefer
    ``DataProto.from_dict(..., auto_padding=True)``, which concerns one batch only.
    """


def pad_dataproto_to_divisor(data: DataProto, size_divisor: int) -> tuple[DataProto, int]:
    """Repeat rows from the start until `size_divisor` divides the length.

    Returns:
        The padded batch (the same object if nothing was missing) and the number of rows added.
    """
    pad_size = -len(data) % size_divisor
    if len(data) == 0:
        logger.warning("an empty batch has no row to pad with; it stays empty")
    if pad_size == 0:
        return data, 0
    # Modulo, because a batch shorter than its padding is gone through more than once.
    return data.select_idxs(np.arange(len(data) + pad_size) % len(data)), pad_size


def unpad_dataproto(data: DataProto, pad_size: int) -> DataProto:
    """Drop the last `pad_size` rows: the inverse of :func:`pad_dataproto_to_divisor`."""
    return data[: len(data) - pad_size] if pad_size else data
