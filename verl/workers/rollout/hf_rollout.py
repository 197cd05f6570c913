"""An inference engine on plain transformers: continuous batching, a cache a trajectory.

One thread owns the model. Everything else reaches it through a queue of messages: it takes what has
arrived, prefills the new tokens of waiting requests, then decodes one token of all running requests
together. A request that ends makes room at once; none waits for the longest.

Shapes: n requests of one forward, q their longest run of new tokens.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from verl.config.actor import ActorRolloutRefConfig
from verl.utils.errors import UserError
from verl.workers.forward import head_input
from verl.workers.micro_batch import sizes_by_tokens
from verl.workers.model_loading import (
    load_causal_lm,
    load_tokenizer,
    resolve_dtype,
    stop_token_ids,
)
from verl.workers.rollout.base import ENGINES, Generation, RolloutEngine, SamplingSettings
from verl.workers.rollout.request import Request, StopStrings, common_prefix
from verl.workers.rollout.sampling import SamplingBatch, sample
from verl.workers.rollout.slot_cache import SLOT_ATTENTION, SlotCache, SlotTable
from verl.workers.weight_sync import PackedWeights, load_packed_weights

logger = logging.getLogger(__name__)

PREFILL_TOKENS = 8192  # tokens of one prefill forward, padding included


@dataclass
class EngineStats:
    generated_tokens: int = 0
    prefilled_tokens: int = 0
    cache_hit_tokens: int = 0  # prompt tokens that did not have to be prefilled
    decode_steps: int = 0
    busy_seconds: float = 0.0


class HFRollout:
    """A `RolloutEngine`; see the module for how it works and `RolloutEngine` for its methods."""

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
            model: loaded with `attn_implementation` SLOT_ATTENTION, on its device.
            max_num_seqs: requests that are decoded together, and trajectories that are cached.
            max_model_len: tokens of a prompt and its response together.

        Raises:
            UserError: the model's attention is not plain causal attention at this length.
        """
        _check_attention(model, max_model_len)
        self._model = model.eval().requires_grad_(False)
        self._device = next(model.parameters()).device
        self._max_model_len = max_model_len
        self._end_tokens = stop_token_ids(model, tokenizer)
        self._ends_with = StopStrings(tokenizer)
        self._table = SlotTable(max_num_seqs)
        layers = model.config.get_text_config().num_hidden_layers
        self._cache = SlotCache(max_num_seqs, layers, max_model_len)
        self._stats = EngineStats()
        self._version = 0
        self._noise = torch.Generator()
        self._noise.seed()

        self._messages: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []  # the request of row i is at place i
        self._loading: deque[tuple[PackedWeights, int, Future[None]]] = deque()
        self._lock = threading.Lock()  # after close() no message enters the queue
        self._closed = False
        self._serving = True
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._serve, name="hf-rollout", daemon=True)

    # --- called from any thread -----------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    async def generate(
        self, prompt_ids: Sequence[int], sampling: SamplingSettings, *, trajectory_id: str
    ) -> Generation:
        request = self._request(np.asarray(prompt_ids, dtype=np.int64), sampling, trajectory_id)
        self._send(lambda: self._waiting.append(request))
        return await asyncio.wrap_future(request.future)

    def release(self, trajectory_id: str) -> None:
        self._send(lambda: self._table.release(trajectory_id))

    def load_weights(self, weights: PackedWeights, version: int) -> None:
        done: Future[None] = Future()
        self._send(lambda: self._loading.append((weights, version, done)))
        done.result()

    def stats(self) -> dict[str, float]:
        return dict(vars(self._stats))

    def close(self) -> None:
        with self._lock:
            if not self._closed:
                self._closed = True
                self._messages.put(self._stop)
        if self._thread.is_alive():
            self._thread.join()

    def _send(self, message: Callable[[], None]) -> None:
        with self._lock:
            if self._closed:
                raise RuntimeError("the rollout engine is closed")
            self._messages.put(message)

    def _request(
        self, prompt_ids: np.ndarray, sampling: SamplingSettings, trajectory_id: str
    ) -> Request:
        room = self._max_model_len - len(prompt_ids)
        if len(prompt_ids) == 0 or room < 1 or sampling.max_tokens < 1:
            raise ValueError(
                f"a prompt of {len(prompt_ids)} tokens and max_tokens={sampling.max_tokens} leave "
                f"nothing to generate within max_model_len={self._max_model_len}"
            )
        max_tokens = min(sampling.max_tokens, room)
        generator = self._noise
        if sampling.seed is not None:
            generator = torch.Generator().manual_seed(sampling.seed)
        uniforms = torch.rand(max_tokens, generator=generator).tolist()
        return Request(prompt_ids, sampling, trajectory_id, max_tokens, uniforms)

    # --- the engine's thread --------------------------------------------------------------------

    def _serve(self) -> None:
        """Until closed. An error fails every open request and every later one; nobody waits."""
        try:
            with torch.inference_mode():
                while self._serving:
                    self._take_messages()
                    started = time.perf_counter()
                    self._iterate()
                    self._stats.busy_seconds += time.perf_counter() - started
        except Exception as error:
            logger.exception("the rollout engine failed")
            self._error = error
            self._fail_open()
            while self._serving:
                self._messages.get()()
                self._fail_open()

    def _take_messages(self) -> None:
        """All that have arrived; waits for one when there is nothing else to do."""
        idle = not (self._waiting or self._running or self._loading)
        try:
            while True:
                self._messages.get(block=idle)()
                idle = False
        except queue.Empty:
            pass

    def _iterate(self) -> None:
        if self._loading and not self._running:
            self._load_next()
        if self._waiting and not self._loading:
            self._admit()
        if self._running:
            self._decode()

    def _stop(self) -> None:
        self._serving = False
        self._fail_open()

    def _fail_open(self) -> None:
        open_futures = [r.future for r in (*self._waiting, *self._running)]
        open_futures += [done for _, _, done in self._loading]
        for entries in (self._waiting, self._running, self._loading):
            entries.clear()
        for future in open_futures:
            if future.set_running_or_notify_cancel():
                error = RuntimeError("the rollout engine does not serve any more")
                error.__cause__ = self._error
                future.set_exception(error)

    def _load_next(self) -> None:
        weights, version, done = self._loading.popleft()
        try:
            load_packed_weights(self._model, weights)
        except ValueError as error:  # the weights do not fit; the engine goes on with the old ones
            done.set_exception(error)
            return
        self._version = version
        self._table.forget_all()
        done.set_result(None)

    def _admit(self) -> None:
        """Give waiting requests a slot and prefill what the slot does not hold yet."""
        admitted = []
        while self._waiting and (slot := self._table.acquire(self._waiting[0].trajectory_id)):
            request = self._waiting.popleft()
            request.slot, request.weight_version = slot, self._version
            # at least one token is computed again: its output predicts the first new one
            known = common_prefix(slot.tokens, request.prompt_ids[:-1])
            slot.tokens = request.prompt_ids[:known]
            self._stats.cache_hit_tokens += known
            admitted.append(request)
        admitted.sort(key=lambda request: request.new_tokens, reverse=True)
        counts = [request.new_tokens for request in admitted]
        start = 0
        for size in sizes_by_tokens(counts, PREFILL_TOKENS, packed=False):
            self._prefill(admitted[start : start + size])
            start += size
        self._arrange([*self._running, *admitted])

    def _prefill(self, requests: list[Request]) -> None:
        """Compute the new tokens of each prompt and sample the first token of each response."""
        counts = [request.new_tokens for request in requests]
        ids_nq = np.zeros((len(requests), counts[0]), dtype=np.int64)  # the first has the most
        for row, (request, count) in enumerate(zip(requests, counts, strict=True)):
            ids_nq[row, :count] = request.prompt_ids[-count:]
        first_n = self._tensor([len(request.slot.tokens) for request in requests])
        position_nq = first_n[:, None] + torch.arange(counts[0], device=self._device)
        row_n = self._tensor([request.slot.row for request in requests])
        last_n = self._tensor(counts) - 1
        self._stats.prefilled_tokens += sum(counts)
        self._step(
            requests, row_n, row_n, torch.from_numpy(ids_nq).to(self._device), position_nq, last_n
        )

    def _decode(self) -> None:
        """One more token for every running request; their rows are the first ones, in order."""
        requests = self._running
        row_n = torch.arange(len(requests), device=self._device)
        ids_n = self._tensor([request.token_ids[-1] for request in requests])
        position_n = self._tensor([request.length - 1 for request in requests])
        self._stats.decode_steps += 1
        rows = slice(0, len(requests))
        self._step(
            requests, rows, row_n, ids_n[:, None], position_n[:, None], torch.zeros_like(row_n)
        )
        still_running = [request for request in requests if request.slot.busy]
        if len(still_running) < len(requests):
            self._arrange(still_running)

    def _step(
        self,
        requests: list[Request],
        rows: slice | Tensor,
        row_n: Tensor,
        ids_nq: Tensor,
        position_nq: Tensor,
        last_n: Tensor,
    ) -> None:
        """Run the model on the new tokens and sample after position `last_n` of each row."""
        length = max(request.length for request in requests)
        self._cache.select(rows, row_n, position_nq, length)
        visible_nqL = torch.arange(length, device=self._device) <= position_nq[:, :, None]
        index_n = torch.arange(len(requests), device=self._device)
        with head_input(self._model, lambda hidden: hidden[index_n, last_n]):
            logits_nV = self._model(
                input_ids=ids_nq,
                position_ids=position_nq,
                attention_mask=visible_nqL[:, None],
                past_key_values=self._cache,
                use_cache=True,
            ).logits
        uniform_n = [request.uniforms[len(request.token_ids)] for request in requests]
        settings = SamplingBatch.of([request.sampling for request in requests], self._device)
        sampled = sample(logits_nV, settings, torch.tensor(uniform_n, device=self._device))
        self._take_tokens(requests, sampled.token_N.tolist(), sampled.log_prob_N.tolist())

    def _take_tokens(
        self, requests: list[Request], tokens: list[int], log_probs: list[float]
    ) -> None:
        self._stats.generated_tokens += len(tokens)
        for request, token, log_prob in zip(requests, tokens, log_probs, strict=True):
            request.token_ids.append(token)
            request.log_probs.append(log_prob)
            reason = self._finish_reason(request)
            if reason is not None:
                self._finish(request, reason)

    def _finish_reason(self, request: Request) -> Literal["stop", "length"] | None:
        if request.token_ids[-1] in self._end_tokens:
            return "stop"
        if request.sampling.stop and self._ends_with(request.token_ids, request.sampling.stop):
            return "stop"
        if len(request.token_ids) == request.max_tokens or request.future.cancelled():
            return "length"
        return None

    def _finish(self, request: Request, reason: Literal["stop", "length"]) -> None:
        self._table.put_back(request.slot, request.known_tokens)
        if request.future.set_running_or_notify_cancel():
            request.future.set_result(
                Generation(
                    tuple(request.token_ids),
                    tuple(request.log_probs),
                    reason,
                    request.weight_version,
                )
            )

    def _arrange(self, requests: list[Request]) -> None:
        """Make the requests that are not finished the running ones, in the first rows."""
        running = [request for request in requests if request.slot.busy]
        pairs = self._table.to_front([request.slot for request in running])
        if pairs:
            held = [len(slot.tokens) for pair in pairs for slot in pair]
            length = max([*held, *(request.length for request in running)])
            self._cache.swap_rows([(a.row, b.row) for a, b in pairs], length)
        self._running = sorted(running, key=lambda request: request.slot.row)

    def _tensor(self, values: list[int]) -> Tensor:
        return torch.tensor(values, device=self._device)


def _check_attention(model: PreTrainedModel, max_model_len: int) -> None:
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None)
    if kinds - {"full_attention", "sliding_attention"}:
        raise UserError(
            f"rollout.name=hf runs attention layers only, and {config.model_type} has "
            f"{sorted(kinds)}; choose another model"
        )
    if window is not None and window < max_model_len:
        raise UserError(
            f"rollout.name=hf has no sliding window, and {config.model_type} uses one of {window} "
            f"tokens; set rollout.max_model_len={window} or less, or choose another model"
        )


@ENGINES.register("hf")
def build_hf_rollout(
    config: ActorRolloutRefConfig, device: str, max_model_len: int
) -> RolloutEngine:
    """`HFRollout` of `config.model`, without adapters: it is given merged weights."""
    dtype = resolve_dtype(
        config.rollout.dtype, auto=torch.bfloat16 if device == "cuda" else torch.float32
    )
    plain = replace(config.model, lora_rank=0, attn_implementation=SLOT_ATTENTION)
    return HFRollout(
        load_causal_lm(plain, dtype).to(device),
        load_tokenizer(config.model),
        max_num_seqs=config.rollout.max_num_seqs,
        max_model_len=max_model_len,
    )
