"""Log-prob of a token and entropy of its distribution from one set of logits.

Shapes: N tokens, V vocabulary. A PyTorch graph of the two keeps several float32 (N, V) tensors
for the backward pass; this one keeps the logits alone, in their own precision, and works in
slices.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

LEAST_LOG_PROB = -1e4  # of a word that is ruled out (logit -inf): p log p is 0, not 0 * inf
SLICE_ELEMENTS = 1 << 25  # float32 elements worked on at once: 128 MiB a temporary


class TokenStatistics(NamedTuple):
    """(N,) float32 each, in nats."""

    log_prob_N: Tensor
    entropy_N: Tensor


def token_statistics(
    logits_NV: Tensor, target_N: Tensor, temperature: float = 1.0
) -> TokenStatistics:
    """Of softmax(logits / temperature): log p(target) and -sum_v p_v log p_v, both differentiable.

    Computed in float32 whatever the logits' precision. `temperature` is positive.
    """
    return TokenStatistics(*_LogProbEntropy.apply(logits_NV, target_N, temperature))


class _LogProbEntropy(torch.autograd.Function):
    """With z = logits / temperature, p = softmax(z), H the entropy and y the target:

    d log p_y / dz_v = 1[v = y] - p_v        dH / dz_v = -p_v log p_v - p_v H
    """

    @staticmethod
    def forward(
        ctx, logits_NV: Tensor, target_N: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        log_prob_N = torch.empty(target_N.shape, dtype=torch.float32, device=logits_NV.device)
        entropy_N = torch.empty_like(log_prob_N)
        log_norm_N = torch.empty_like(log_prob_N)
        for part in _slices(logits_NV):
            scaled = _scaled(logits_NV[part], temperature)
            log_norm_N[part] = scaled.logsumexp(dim=-1)
            target_logit = scaled.gather(-1, target_N[part, None]).squeeze(-1)
            log_prob_N[part] = target_logit - log_norm_N[part]
            prob = scaled.sub_(log_norm_N[part, None]).exp_()
            entropy_N[part] = torch.special.entr(prob).sum(dim=-1)
        ctx.save_for_backward(logits_NV, target_N, log_norm_N, entropy_N)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return log_prob_N, entropy_N

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor | None):
        grad_log_prob_N, grad_entropy_N = grad_outputs
        logits_NV, target_N, log_norm_N, entropy_N = ctx.saved_tensors
        grad_NV = torch.empty_like(logits_NV)
        for part in _slices(logits_NV):
            log_prob = _scaled(logits_NV[part], ctx.temperature).sub_(log_norm_N[part, None])
            prob = log_prob.exp()
            # factor_v of the gradient -p_v * factor_v, in the memory of the log-probs
            factor = log_prob.zero_() if grad_entropy_N is None else log_prob
            if grad_entropy_N is not None:
                factor.clamp_(min=LEAST_LOG_PROB).add_(entropy_N[part, None])
                factor.mul_(grad_entropy_N[part, None])
            if grad_log_prob_N is not None:
                factor.add_(grad_log_prob_N[part, None])
            grad = factor.mul_(prob).neg_()
            if grad_log_prob_N is not None:
                grad.scatter_add_(-1, target_N[part, None], grad_log_prob_N[part, None])
            grad_NV[part] = grad.div_(ctx.temperature)
        return grad_NV, None, None


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    """A float32 copy, divided by the temperature."""
    return logits.to(torch.float32, copy=True).div_(temperature)


def _slices(logits_NV: Tensor) -> list[slice]:
    tokens, vocabulary = logits_NV.shape
    step = max(1, SLICE_ELEMENTS // vocabulary)
    return [slice(start, start + step) for start in range(0, tokens, step)]
