"""Tensor functions of the trainer: masked statistics, masks and padding.

Shapes: B rows, T tokens, V vocabulary. The functions over the vocabulary and the learning-rate
schedules live in their own files and are importable from here, as users of verl expect.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from verl.utils.lr_schedules import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_wsd_schedule_with_warmup,
)
from verl.utils.vocab_functional import (
    entropy_from_logits,
    entropy_from_logits_with_chunking,
    log_probs_from_logits_response,
    logprobs_from_logits,
    logprobs_from_logits_naive,
    logprobs_from_logits_v2,
)

__all__ = [
    "broadcast_dict_tensor",
    "clip_by_value",
    "compute_grad_norm",
    "entropy_from_logits",
    "entropy_from_logits_with_chunking",
    "get_constant_schedule_with_warmup",
    "get_cosine_schedule_with_warmup",
    "get_response_mask",
    "get_wsd_schedule_with_warmup",
    "log_probs_from_logits_response",
    "logprobs_from_logits",
    "logprobs_from_logits_naive",
    "logprobs_from_logits_v2",
    "masked_mean",
    "masked_sum",
    "masked_var",
    "masked_whiten",
    "pad_2d_list_to_length",
    "pad_sequence_to_length",
    "postprocess_data",
    "split_dict_tensor_into_batches",
]

_EPSILON = 1e-8


# --- masked statistics --------------------------------------------------------------------------


def masked_sum(values: Tensor, mask: Tensor, axis: int | tuple[int, ...] | None = None) -> Tensor:
    """``sum(values * mask)``; what lies outside the mask is ignored even if it is NaN or inf."""
    return (torch.where(mask.bool(), values, 0) * mask).sum(axis)


def masked_mean(values: Tensor, mask: Tensor, axis: int | tuple[int, ...] | None = None) -> Tensor:
    """Mean over the mask; 0 where the mask is empty."""
    return masked_sum(values, mask, axis) / mask.sum(axis).clamp(min=_EPSILON)


def masked_var(values: Tensor, mask: Tensor, unbiased: bool = True) -> Tensor:
    """Variance over the mask, a scalar; `unbiased` divides by n - 1 instead of n.

    Raises:
        ValueError: the mask has no element, or a single one while `unbiased` asks for two.
    """
    variance = masked_mean((values - masked_mean(values, mask)) ** 2, mask)
    if not unbiased:
        return variance
    count = mask.sum()
    if count <= 1:
        raise ValueError(
            f"the mask has {int(count)} element(s) and an unbiased variance needs two; "
            "pass unbiased=False or enlarge the batch"
        )
    return variance * count / (count - 1)


def masked_whiten(values: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Scale to unit variance over the mask, and to zero mean unless `shift_mean` is False."""
    mean = masked_mean(values, mask)
    whitened = (values - mean) * torch.rsqrt(masked_var(values, mask) + _EPSILON)
    return whitened if shift_mean else whitened + mean


def clip_by_value(x: Tensor, tensor_min: Tensor, tensor_max: Tensor) -> Tensor:
    """Clamp element by element between two tensors."""
    return torch.clamp(x, tensor_min, tensor_max)


def compute_grad_norm(model: nn.Module) -> float:
    """L2 norm of all gradients of `model`; 0.0 if there are none."""
    gradients = [param.grad for param in model.parameters() if param.grad is not None]
    return float(nn.utils.get_total_norm(gradients))


# --- masks and padding --------------------------------------------------------------------------


def get_response_mask(
    response_id: Tensor, eos_token: int | list[int] = 2, dtype: torch.dtype = torch.int64
) -> Tensor:
    """1 up to and including the first end-of-sequence token, 0 after it.

    Args:
        response_id: (B, T) token ids.
        eos_token: the id or the ids that end a response.

    Example:
        ``[5, 6, 2, 0]`` with eos 2 gives ``[1, 1, 1, 0]``.
    """
    eos_tokens = torch.as_tensor(eos_token, device=response_id.device)
    is_eos_BT = torch.isin(response_id, eos_tokens)
    eos_before_BT = is_eos_BT.cumsum(dim=1) - is_eos_BT.long()
    return (eos_before_BT == 0).to(dtype)


def pad_2d_list_to_length(
    response: list[list[int]], pad_token_id: int, max_length: int | None = None
) -> Tensor:
    """Right-pad rows of unequal length to a (B, T) tensor; T is at least `max_length`."""
    longest = max(len(row) for row in response)
    width = longest if max_length is None else max(longest, max_length)
    return torch.tensor([[*row, *[pad_token_id] * (width - len(row))] for row in response])


def pad_sequence_to_length(
    tensors: Tensor, max_seq_len: int, pad_token_id: float, left_pad: bool = False
) -> Tensor:
    """Pad ``(B, T)`` to ``(B, max_seq_len)``; a tensor that is long enough comes back as it is."""
    missing = max_seq_len - tensors.shape[-1]
    if missing <= 0:
        return tensors
    return F.pad(tensors, (missing, 0) if left_pad else (0, missing), value=pad_token_id)


def postprocess_data(
    input_ids: Tensor,
    attention_mask: Tensor,
    max_length: int,
    pad_token_id: int,
    left_pad: bool = True,
    truncation: str = "error",
) -> tuple[Tensor, Tensor]:
    """Bring a tokenised batch to exactly `max_length` tokens.

    Args:
        input_ids, attention_mask: (B, T).
        truncation: what a longer batch loses: ``left`` its start, ``right`` its end, ``middle`` its
            middle; ``error`` refuses it.

    Returns:
        ``(input_ids, attention_mask)``, both (B, max_length).

    Raises:
        NotImplementedError: the batch is too long and `truncation` is ``error``.
    """
    assert truncation in ("left", "right", "middle", "error"), (
        f"truncation='{truncation}' is unknown; choose left, right, middle or error"
    )
    assert input_ids.ndim == 2, f"input_ids must be (B, T), not {tuple(input_ids.shape)}"
    length = input_ids.shape[-1]
    if length <= max_length:
        return (
            pad_sequence_to_length(input_ids, max_length, pad_token_id, left_pad),
            pad_sequence_to_length(attention_mask, max_length, 0, left_pad),
        )
    if truncation == "error":
        raise NotImplementedError(
            f"sequence_length={length} is larger than max_length={max_length}; "
            "raise the limit or choose a truncation"
        )
    head = {"left": 0, "right": max_length, "middle": max_length // 2}[truncation]
    kept = torch.cat([torch.arange(head), torch.arange(length - (max_length - head), length)])
    return input_ids[:, kept], attention_mask[:, kept]


# --- dicts of tensors ---------------------------------------------------------------------------


def split_dict_tensor_into_batches(tensors, batch_size: int) -> list:
    """Cut a TensorDict into equal parts of `batch_size` rows.

    Raises:
        AssertionError: `batch_size` does not divide the rows.
    """
    rows = tensors.batch_size[0]
    assert rows % batch_size == 0, f"batch_size={batch_size} must divide the {rows} rows"
    return list(tensors.split(batch_size))


def broadcast_dict_tensor(tensors, src: int, group: dist.ProcessGroup | None) -> None:
    """Copy every tensor of rank `src` over the same-named one of all ranks, in place."""
    for key in sorted(tensors.keys()):
        dist.broadcast(tensors[key], src=src, group=group, async_op=False)
