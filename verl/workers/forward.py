"""One forward pass over a micro-batch: log-prob and entropy, or values, of its active tokens only.

Shapes: R rows, S = P + T padded positions of `input_ids`, T response positions, L the longest row
without padding, N active tokens (response_mask = 1), D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from verl.workers.token_statistics import TokenStatistics, token_statistics


@dataclass(frozen=True)
class ForwardInputs:
    """A micro-batch without its padding, and where its active tokens sit.

    `model_inputs` holds rows moved to the left and cut at the longest, (R, L), which causal
    attention needs no mask for; or, packed, all rows end to end, (1, sum of lengths).
    `position_N` are the flat positions therein whose output predicts an active token, `target_N`
    those tokens and `response_mask_RT` their places in the response.
    """

    model_inputs: Mapping[str, Tensor | int]
    position_N: Tensor
    target_N: Tensor
    response_mask_RT: Tensor

    def to_rows(self, value_N: Tensor) -> Tensor:
        """(N,) values of the active tokens -> (R, T), 0 elsewhere."""
        value_RT = value_N.new_zeros(self.response_mask_RT.shape)
        return value_RT.masked_scatter(self.response_mask_RT, value_N)


def forward_inputs(batch: Mapping[str, Tensor], *, packed: bool) -> ForwardInputs:
    """Lay out `input_ids`, `attention_mask` (R, S) and `response_mask` (R, T) for one forward.

    A micro-batch without rows becomes a single token that nothing depends on: a rank that has run
    out of rows still has to take part in the others' collectives.
    """
    mask_RT = batch["response_mask"].bool()
    rows, responses = mask_RT.shape
    if rows == 0:
        dummy = torch.zeros((1, 1), dtype=torch.long, device=mask_RT.device)
        return ForwardInputs({"input_ids": dummy}, dummy[0, :0], dummy[0, :0], mask_RT)

    token_RS = batch["attention_mask"].bool()
    index_RS = token_RS.cumsum(dim=-1) - 1  # of each token in its row
    length_R = token_RS.sum(dim=-1)
    ids = batch["input_ids"][token_RS]
    row_offset_R = (
        pad(length_R.cumsum(0), (1, -1))
        if packed
        else torch.arange(rows, device=ids.device) * length_R.max()
    )
    position_RS = row_offset_R[:, None] + index_RS

    if packed:
        model_inputs = _packed_inputs(ids, index_RS[token_RS], length_R)
    else:
        ids_RL = ids.new_zeros((rows, int(length_R.max())))
        ids_RL.view(-1)[position_RS[token_RS]] = ids
        model_inputs = {"input_ids": ids_RL}
    return ForwardInputs(
        model_inputs=model_inputs,
        position_N=position_RS[:, -responses:][mask_RT]
        - 1,  # the output before a token predicts it
        target_N=batch["input_ids"][:, -responses:][mask_RT],
        response_mask_RT=mask_RT,
    )


def _packed_inputs(ids: Tensor, index: Tensor, length_R: Tensor) -> dict[str, Tensor | int]:
    """Positions restart at every row; given the boundaries, no layer has to look for them."""
    boundaries = pad(length_R.cumsum(0), (1, 0)).to(torch.int32)
    longest = int(length_R.max())
    return {
        "input_ids": ids[None],
        "position_ids": index[None],
        "cu_seq_lens_q": boundaries,
        "cu_seq_lens_k": boundaries,
        "max_length_q": longest,
        "max_length_k": longest,
    }


@contextmanager
def head_input(model: PreTrainedModel, choose: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within the context the output head sees `choose(hidden)`, not all hidden states (R, L, D).

    So logits exist only where they are used: a head over 150,000 words costs more memory than the
    rest of the model. A hook, because it works inside FSDP, LoRA and gradient checkpointing.
    """
    head = model.get_output_embeddings()
    assert head is not None, f"{type(model).__name__} has no output head"
    handle = head.register_forward_pre_hook(
        lambda module, arguments: (choose(arguments[0]), *arguments[1:])
    )
    try:
        yield
    finally:
        handle.remove()


def active_logits(model: PreTrainedModel, inputs: ForwardInputs) -> Tensor:
    """(N, V) raw logits that predict the active tokens; (N, 1) from a value model."""
    with head_input(model, lambda hidden: hidden.flatten(0, -2)[inputs.position_N]):
        return model(**inputs.model_inputs, use_cache=False).logits


def policy_statistics(
    logits_NV: Tensor, inputs: ForwardInputs, temperature: float
) -> TokenStatistics:
    """Of softmax(logits / temperature) at the active tokens, (R, T) float32, 0 elsewhere."""
    statistics = token_statistics(logits_NV, inputs.target_N, temperature)
    return TokenStatistics(*(inputs.to_rows(value_N) for value_N in statistics))


def policy_forward(
    model: PreTrainedModel, inputs: ForwardInputs, temperature: float
) -> TokenStatistics:
    """`policy_statistics` of one forward pass."""
    return policy_statistics(active_logits(model, inputs), inputs, temperature)


def value_forward(model: PreTrainedModel, inputs: ForwardInputs) -> Tensor:
    """Values of the states before each active token, (R, T) float32, 0 elsewhere."""
    return inputs.to_rows(active_logits(model, inputs).float().squeeze(-1))
