"""Continuous batching on plain transformers, with caches that last a trajectory. No threads here.

A step prefills the new tokens of waiting requests, then decodes one token of all running requests
together. A request that ends makes room at once; none waits for the longest.

Shapes: n requests of one forward, q their longest run of new tokens, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from verl.workers.forward import head_input
from verl.workers.micro_batch import sizes_by_tokens
from verl.workers.model_loading import stop_token_ids
from verl.workers.rollout.request import Request, common_prefix
from verl.workers.rollout.row_cache import RowCache, RowTable
from verl.workers.rollout.sampling import SamplingBatch, sample
from verl.workers.rollout.stopping import StopStrings
from verl.workers.token_statistics import token_statistics
from verl.workers.weight_sync import (
    PackedWeights,
    WeightUpdate,
    checksum,
    load_packed_weights,
    pack_weights,
)

PREFILL_TOKENS = 8192  # tokens of one prefill forward, padding included


@dataclass
class BatcherStats:
    """Counters since the start."""

    generated_tokens: int = 0
    prefilled_tokens: int = 0
    cache_hit_tokens: int = 0  # prompt tokens that did not have to be prefilled
    decode_steps: int = 0
    busy_seconds: float = 0.0


class ContinuousBatcher:
    """Owns the model and the cache; whoever owns the batcher calls `step` while there is work."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_num_seqs: int,
        max_model_len: int,
    ) -> None:
        """
        Args:
            model: loaded with `attn_implementation` ROW_ATTENTION, on its device.
            max_num_seqs: requests that are decoded together, and trajectories that are cached.
            max_model_len: tokens of a prompt and its response together.
        """
        self._model = model.eval().requires_grad_(False)
        self._device = next(model.parameters()).device
        self.end_tokens = stop_token_ids(model, tokenizer)
        self._is_stopped = StopStrings(tokenizer)
        self._layers: int = model.config.get_text_config().num_hidden_layers
        self._cache = RowCache(max_num_seqs, self._layers, max_model_len)
        self._table = RowTable(max_num_seqs)
        self._version = 0
        self._waiting: deque[Request] = deque()
        # after `_arrange` the request of row i is at place i
        self._running: list[Request] = []
        self.stats = BatcherStats()

    @property
    def has_running(self) -> bool:
        return bool(self._running)

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._running)

    def add(self, request: Request) -> None:
        """The request waits for a row."""
        self._waiting.append(request)

    def release(self, trajectory_id: str) -> None:
        """Forget what is cached for the trajectory."""
        self._table.release(trajectory_id)

    def load_weights(self, update: WeightUpdate) -> None:
        """Replace the weights and forget all caches, which are of the old ones.

        Nothing may be running. Raises ValueError, changing nothing, when they do not fit.
        """
        load_packed_weights(self._model, update.tensors)
        self._version = update.version
        self._table.forget_all()
        if update.checksum is not None:
            self._compare(update)

    def score(self, rows: Sequence[Sequence[int]]) -> list[list[float]]:
        """See `ScoringEngine`: the forward of a prefill, in a cache that is only there for it."""
        lengths = [len(row) for row in rows]
        ids_nq = np.zeros((len(rows), max(lengths)), dtype=np.int64)
        for ids_q, row in zip(ids_nq, rows, strict=True):
            ids_q[: len(row)] = row
        row_n = torch.arange(len(rows), device=self._device)
        position_q = torch.arange(max(lengths), device=self._device)
        logits_nqV = self._logits(
            RowCache(len(rows), self._layers, max(lengths)),
            rows=row_n,
            row_n=row_n,
            ids_nq=torch.from_numpy(ids_nq).to(self._device),
            position_nq=position_q.expand(len(rows), -1),
            length=max(lengths),
            choose=lambda hidden: hidden,
        )
        return [
            token_statistics(
                logits_qV[: len(row) - 1], self._tensor(list(row)[1:])
            ).log_prob_N.tolist()
            for logits_qV, row in zip(logits_nqV, rows, strict=True)
        ]

    def differing_weights(self, update: WeightUpdate) -> list[str]:
        """See `ComparingEngine`."""
        held = self._held(update)
        return [
            name
            for name, sent in update.tensors.items()
            if checksum({name: held[name]}) != checksum({name: sent})
        ]

    def _compare(self, update: WeightUpdate) -> None:
        """Raises RuntimeError when the model does not hold the trainer's weights bit for bit."""
        if checksum(self._held(update)) != update.checksum:
            raise RuntimeError(
                f"the weights of version {update.version} did not arrive as the trainer sent them"
            )

    def _held(self, update: WeightUpdate) -> PackedWeights:
        """What the model has under the names of `update`."""
        held = self._model.state_dict()
        return pack_weights({name: held[name].cpu() for name in update.tensors})

    def drop_all(self) -> list[Request]:
        """Give up every open request; returns them."""
        # a step that failed half way may have finished some of the running ones
        dropped = [r for r in [*self._waiting, *self._running] if not r.future.done()]
        self._waiting.clear()
        self._running.clear()
        return dropped

    def step(self, *, admit: bool = True) -> None:
        """One token for every running request; with `admit`, waiting ones join them first."""
        if self._waiting and admit:
            self._admit()
        if self._running:
            self._decode()

    def _admit(self) -> None:
        """Give waiting requests a row and prefill what the row does not hold yet."""
        admitted = []
        while self._waiting and (row := self._table.acquire(self._waiting[0].trajectory_id)):
            request = self._waiting.popleft()
            self._running.append(request)  # at once: if the prefill fails, `drop_all` finds it
            request.row, request.weight_version = row, self._version
            # at least one token is computed again: its output predicts the first new one
            known = common_prefix(row.tokens, request.prompt_ids[:-1])
            row.tokens = request.prompt_ids[:known]
            self.stats.cache_hit_tokens += known
            admitted.append(request)
        admitted.sort(key=lambda request: request.new_tokens, reverse=True)
        counts = [request.new_tokens for request in admitted]
        start = 0
        for size in sizes_by_tokens(counts, PREFILL_TOKENS, packed=False):
            self._prefill(admitted[start : start + size])
            start += size
        self._arrange(self._running)

    def _prefill(self, requests: list[Request]) -> None:
        """Compute the new tokens of each prompt and sample the first token of each response."""
        counts = [request.new_tokens for request in requests]
        ids_nq = np.zeros((len(requests), counts[0]), dtype=np.int64)  # the first has the most
        for row, (request, count) in enumerate(zip(requests, counts, strict=True)):
            ids_nq[row, :count] = request.prompt_ids[-count:]
        first_n = self._tensor([len(request.row.tokens) for request in requests])
        row_n = self._tensor([request.row.index for request in requests])
        self.stats.prefilled_tokens += sum(counts)
        self._forward(
            requests,
            rows=row_n,
            row_n=row_n,
            ids_nq=torch.from_numpy(ids_nq).to(self._device),
            position_nq=first_n[:, None] + torch.arange(counts[0], device=self._device),
            last_n=self._tensor(counts) - 1,
        )

    def _decode(self) -> None:
        """One more token for every running request; their rows are the first ones, in order."""
        requests = self._running
        row_n = torch.arange(len(requests), device=self._device)
        self.stats.decode_steps += 1
        self._forward(
            requests,
            rows=slice(0, len(requests)),
            row_n=row_n,
            ids_nq=self._tensor([request.token_ids[-1] for request in requests])[:, None],
            position_nq=self._tensor([request.length - 1 for request in requests])[:, None],
            last_n=torch.zeros_like(row_n),
        )
        still_running = [request for request in requests if request.row.busy]
        if len(still_running) < len(requests):
            self._arrange(still_running)

    def _forward(
        self,
        requests: list[Request],
        *,
        rows: slice | Tensor,
        row_n: Tensor,
        ids_nq: Tensor,
        position_nq: Tensor,
        last_n: Tensor,
    ) -> None:
        """Run the model on the new tokens and sample after position `last_n` of each row."""
        index_n = torch.arange(len(requests), device=self._device)
        logits_nV = self._logits(
            self._cache,
            rows=rows,
            row_n=row_n,
            ids_nq=ids_nq,
            position_nq=position_nq,
            length=max(request.length for request in requests),
            choose=lambda hidden: hidden[index_n, last_n],
        )
        uniform_n = [request.uniforms[len(request.token_ids)] for request in requests]
        settings = SamplingBatch.of([request.sampling for request in requests], self._device)
        sampled = sample(logits_nV, settings, torch.tensor(uniform_n, device=self._device))
        self._take(requests, sampled.token_N.tolist(), sampled.log_prob_N.tolist())

    def _logits(
        self,
        cache: RowCache,
        *,
        rows: slice | Tensor,
        row_n: Tensor,
        ids_nq: Tensor,
        position_nq: Tensor,
        length: int,
        choose: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Run the model on the new tokens of rows of `cache`; logits of the states it `choose`s."""
        cache.select(rows, row_n, position_nq, length)
        visible_nqL = torch.arange(length, device=self._device) <= position_nq[:, :, None]
        with head_input(self._model, choose):
            return self._model(
                input_ids=ids_nq,
                position_ids=position_nq,
                attention_mask=visible_nqL[:, None],
                past_key_values=cache,
                use_cache=True,
            ).logits

    def _take(self, requests: list[Request], tokens: list[int], log_probs: list[float]) -> None:
        """Append the sampled tokens and end the requests that are complete."""
        self.stats.generated_tokens += len(tokens)
        for request, token, log_prob in zip(requests, tokens, log_probs, strict=True):
            request.token_ids.append(token)
            request.log_probs.append(log_prob)
            reason = self._finish_reason(request)
            if reason is not None:
                self._table.put_back(request.row, request.known_tokens)
                request.finish(reason)

    def _finish_reason(self, request: Request) -> Literal["stop", "length"] | None:
        if request.token_ids[-1] in self.end_tokens:
            return "stop"
        if request.sampling.stop and self._is_stopped(request.token_ids, request.sampling):
            return "stop"
        if len(request.token_ids) == request.max_tokens or request.future.cancelled():
            return "length"
        return None

    def _arrange(self, requests: list[Request]) -> None:
        """Make the requests that are not finished the running ones, in the first rows."""
        running = [request for request in requests if request.row.busy]
        pairs = self._table.to_front([request.row for request in running])
        if pairs:
            held = [len(row.tokens) for pair in pairs for row in pair]
            length = max([*held, *(request.length for request in running)])
            self._cache.swap_rows([(a.index, b.index) for a, b in pairs], length)
        self._running = sorted(running, key=lambda request: request.row.index)

    def _tensor(self, values: list[int]) -> Tensor:
        return torch.tensor(values, device=self._device)
