"""Masks and positions of a padded batch. B rows, S tokens."""

import torch
from torch import Tensor


def compute_position_id_with_mask(mask: Tensor) -> Tensor:
    """Positions of the tokens of a (B, S) attention mask, 0 at the first one and in the padding."""
    return (mask.cumsum(dim=-1) - 1).clamp(min=0)


def create_random_mask(
    input_ids: Tensor,
    max_ratio_of_valid_token: float,
    max_ratio_of_left_padding: float,
    min_ratio_of_valid_token: float = 0,
) -> Tensor:
    """A random attention mask with padding on both sides, for tests and benchmarks.

    Args:
        input_ids: (B, S); only the shape and the device matter.
        max_ratio_of_left_padding: most of S that a row may lose on its left.

    Returns:
        (B, S) int64.

    Raises:
        ValueError: the ratios cannot be met together.
    """
    if not 0 <= min_ratio_of_valid_token <= max_ratio_of_valid_token <= 1:
        raise ValueError(
            f"valid-token ratios {min_ratio_of_valid_token} and {max_ratio_of_valid_token} "
            "must be ordered and lie in [0, 1]"
        )
    if max_ratio_of_left_padding + max_ratio_of_valid_token > 1:
        raise ValueError("left padding and valid tokens together exceed the row; lower a ratio")
    rows, width = input_ids.shape

    def random_length(low: float, high: float) -> Tensor:
        return torch.randint(int(low * width), int(high * width) + 1, (rows, 1))

    start_B1 = random_length(0, max_ratio_of_left_padding)
    end_B1 = start_B1 + random_length(min_ratio_of_valid_token, max_ratio_of_valid_token)
    position_S = torch.arange(width)
    mask_BS = (position_S >= start_B1) & (position_S < end_B1)
    return mask_BS.long().to(input_ids.device)
