"""Drawing one token for each of N requests, together and yet independently of each other.

Shapes: N requests, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from verl.workers.rollout.base import SamplingSettings


@dataclass(frozen=True)
class SamplingBatch:
    """The settings of N requests as columns; a filter that no request uses is None."""

    temperature_N1: Tensor  # 1 for greedy requests
    greedy_N: Tensor
    top_k_N1: Tensor | None
    top_p_N1: Tensor | None

    @classmethod
    def of(cls, settings: Sequence[SamplingSettings], device: torch.device) -> SamplingBatch:
        temperature = torch.tensor([s.temperature for s in settings], device=device)
        top_k = [s.top_k if s.top_k > 0 else torch.iinfo(torch.int64).max for s in settings]
        top_p = torch.tensor([s.top_p for s in settings], device=device)
        has_top_k = any(s.top_k > 0 for s in settings)
        has_top_p = any(s.top_p < 1.0 for s in settings)
        return cls(
            temperature_N1=torch.where(temperature == 0, 1.0, temperature)[:, None],
            greedy_N=temperature == 0,
            top_k_N1=torch.tensor(top_k, device=device)[:, None] if has_top_k else None,
            top_p_N1=top_p[:, None] if has_top_p else None,
        )


class Sampled(NamedTuple):
    token_N: Tensor
    log_prob_N: Tensor


def sample(logits_NV: Tensor, batch: SamplingBatch, uniform_N: Tensor) -> Sampled:
    """Tokens by inversion: the first token at which the cumulative probability exceeds `uniform`.

    One uniform number of [0, 1) a token is all the randomness there is, so that a request's tokens
    follow from its own numbers, whatever is sampled beside it. Log-probs are of
    softmax(logits / temperature) before top-k and top-p.
    """
    log_prob_NV = torch.log_softmax(logits_NV.float() / batch.temperature_N1, dim=-1)
    prob_NV = log_prob_NV.exp()
    if batch.top_k_N1 is not None or batch.top_p_N1 is not None:
        prob_NV = torch.where(_kept(prob_NV, batch), prob_NV, 0.0)
    cumulative_NV = prob_NV.cumsum(dim=-1, dtype=torch.float64)
    threshold_N1 = uniform_N[:, None].double() * cumulative_NV[:, -1:]
    drawn_N = torch.searchsorted(cumulative_NV, threshold_N1, right=True).squeeze(-1)
    token_N = torch.where(batch.greedy_N, logits_NV.argmax(dim=-1), drawn_N)
    return Sampled(token_N, log_prob_NV.gather(-1, token_N[:, None]).squeeze(-1))


def _kept(prob_NV: Tensor, batch: SamplingBatch) -> Tensor:
    """(N, V) bool: the `top_k` most probable tokens, of those the fewest that reach `top_p`."""
    sorted_NV, order_NV = prob_NV.sort(dim=-1, descending=True, stable=True)
    kept_NV = torch.ones_like(prob_NV, dtype=torch.bool)
    if batch.top_k_N1 is not None:
        rank_V = torch.arange(prob_NV.shape[-1], device=prob_NV.device)
        kept_NV &= rank_V < batch.top_k_N1
    if batch.top_p_N1 is not None:
        within_k_NV = torch.where(kept_NV, sorted_NV, 0.0)
        before_NV = within_k_NV.cumsum(dim=-1) - within_k_NV  # probability of the better tokens
        limit_N1 = batch.top_p_N1 * within_k_NV.sum(dim=-1, keepdim=True)
        kept_NV &= (before_NV < limit_N1) | (batch.top_p_N1 >= 1.0)  # 1.0 keeps the last digit too
    return torch.zeros_like(kept_NV).scatter(-1, order_NV, kept_NV)
