"""Log-probabilities and entropy of a softmax over the vocabulary, without a second (.., V) buffer.

Logits are the largest tensor of a training step. Plain autograd keeps a float32 copy of them for
the backward pass; the functions here keep the logits only and recompute the softmax chunk by chunk.
Half-precision logits are raised to float32 within a chunk, because bfloat16 log-probabilities have
three digits and importance ratios are made of their differences.

Shapes: N tokens of any leading shape, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

_CHUNK_TOKENS = 2048


def _accurate(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


class _SelectedLogProb(torch.autograd.Function):
    """``log softmax(logits)[label]``, recomputed in the backward pass."""

    @staticmethod
    def forward(ctx, logits_NV: Tensor, labels_N: Tensor, chunk_size: int) -> Tensor:
        ctx.save_for_backward(logits_NV, labels_N)
        ctx.chunk_size = chunk_size
        chunks = zip(logits_NV.split(chunk_size), labels_N.split(chunk_size), strict=True)
        return torch.cat(
            [-F.cross_entropy(_accurate(z), label, reduction="none") for z, label in chunks]
        )

    @staticmethod
    def backward(ctx, grad_N: Tensor) -> tuple[Tensor, None, None]:
        logits_NV, labels_N = ctx.saved_tensors
        grad_NV = torch.empty_like(logits_NV)
        parts = (t.split(ctx.chunk_size) for t in (logits_NV, labels_N, grad_N, grad_NV))
        for z, label, grad, out in zip(*parts, strict=True):
            # d logp[label] / dz = onehot(label) - softmax(z)
            grad_z = torch.softmax(_accurate(z), dim=-1).mul_(-grad.unsqueeze(-1))
            out.copy_(grad_z.scatter_add_(-1, label.unsqueeze(-1), grad.unsqueeze(-1)))
        return grad_NV, None, None


class _ChunkedEntropy(torch.autograd.Function):
    """``-sum p log p``, recomputed in the backward pass."""

    @staticmethod
    def forward(ctx, logits_NV: Tensor, chunk_size: int) -> Tensor:
        entropy_N = torch.cat([_entropy(_accurate(z)) for z in logits_NV.split(chunk_size)])
        ctx.save_for_backward(logits_NV, entropy_N)
        ctx.chunk_size = chunk_size
        return entropy_N

    @staticmethod
    def backward(ctx, grad_N: Tensor) -> tuple[Tensor, None]:
        logits_NV, entropy_N = ctx.saved_tensors
        grad_NV = torch.empty_like(logits_NV)
        parts = (t.split(ctx.chunk_size) for t in (logits_NV, entropy_N, grad_N, grad_NV))
        for z, entropy, grad, out in zip(*parts, strict=True):
            # dH / dz_v = -p_v (log p_v + H)
            log_p = torch.log_softmax(_accurate(z), dim=-1)
            out.copy_((log_p + entropy.unsqueeze(-1)).mul_(log_p.exp()).mul_(-grad.unsqueeze(-1)))
        return grad_NV, None


def _entropy(logits: Tensor) -> Tensor:
    # H = logsumexp(z) - sum p z: unlike -sum p log p it needs no second pass over log p.
    p = torch.softmax(logits, dim=-1)
    return torch.logsumexp(logits, dim=-1) - (p * logits).sum(dim=-1)


@cache
def _flash_cross_entropy() -> Callable | None:
    try:
        from flash_attn.ops.triton.cross_entropy import cross_entropy_loss
    except ImportError:
        return None
    return cross_entropy_loss


def logprobs_from_logits(logits: Tensor, labels: Tensor, inplace_backward: bool = True) -> Tensor:
    """Log-probability of each label.

    Uses flash-attn's fused kernel for CUDA tensors where it is installed, else
    :func:`logprobs_from_logits_v2`.

    Args:
        logits: (..., V).
        labels: (...) token ids.
        inplace_backward: let the fused kernel overwrite `logits` with their gradient. Pass False
            if anything else (an entropy) is computed from the same logits.

    Returns:
        (...) in float32, or float64 for float64 logits.
    """
    fused = _flash_cross_entropy() if logits.is_cuda else None
    if fused is None:
        return logprobs_from_logits_v2(logits, labels)
    loss_N = fused(
        logits.reshape(-1, logits.shape[-1]),
        labels.reshape(-1),
        inplace_backward=inplace_backward,
    )[0]
    return -loss_N.view(labels.shape)


def logprobs_from_logits_v2(logits: Tensor, labels: Tensor) -> Tensor:
    """:func:`logprobs_from_logits` in plain torch; needs one chunk of memory besides the logits."""
    logits_NV = logits.reshape(-1, logits.shape[-1])
    return _SelectedLogProb.apply(logits_NV, labels.reshape(-1), _CHUNK_TOKENS).view(labels.shape)


def logprobs_from_logits_naive(logits: Tensor, labels: Tensor) -> Tensor:
    """The definition, ``log_softmax(logits)[label]``, as a reference for the others."""
    log_p = torch.log_softmax(_accurate(logits), dim=-1)
    return log_p.gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def log_probs_from_logits_response(
    input_ids: Tensor, logits: Tensor, response_length: int
) -> Tensor:
    """Log-probabilities of the last `response_length` tokens of each row.

    Args:
        input_ids: (B, S) prompt and response.
        logits: (B, S, V); position s predicts token s + 1.

    Returns:
        (B, response_length).
    """
    return logprobs_from_logits(
        logits[:, -response_length - 1 : -1], input_ids[:, -response_length:]
    )


def entropy_from_logits(logits: Tensor) -> Tensor:
    """Entropy in nats of ``softmax(logits)``: (..., V) -> (...) in float32 or float64."""
    return _entropy(_accurate(logits))


def entropy_from_logits_with_chunking(logits: Tensor, chunk_size: int = _CHUNK_TOKENS) -> Tensor:
    """:func:`entropy_from_logits`, differentiable, with the memory of `chunk_size` tokens."""
    logits_NV = logits.reshape(-1, logits.shape[-1])
    return _ChunkedEntropy.apply(logits_NV, chunk_size).view(logits.shape[:-1])
