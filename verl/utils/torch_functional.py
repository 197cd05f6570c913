"""Statistics of values under a mask."""

from __future__ import annotations

import torch
from torch import Tensor

_EPSILON = 1e-8


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the mask, a scalar; 0 where it is empty. What lies outside may be NaN or inf."""
    kept = torch.where(mask.bool(), values, 0) * mask
    return kept.sum() / mask.sum().clamp(min=_EPSILON)


def masked_var(values: Tensor, mask: Tensor) -> Tensor:
    """Unbiased variance over the mask, a scalar.

    Raises:
        ValueError: the mask has fewer than two elements.
    """
    count = mask.sum()
    if count <= 1:
        raise ValueError(
            f"the mask has {int(count)} element(s) and a variance needs two; enlarge the batch"
        )
    variance = masked_mean((values - masked_mean(values, mask)) ** 2, mask)
    return variance * count / (count - 1)


def masked_whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Shifted to zero mean and scaled to unit variance over the mask."""
    mean = masked_mean(values, mask)
    return (values - mean) * torch.rsqrt(masked_var(values, mask) + _EPSILON)
