"""The batches of an epoch: conversations of similar length together, the same for the same seed.

Shapes: B conversations, S tokens of the longest one of a batch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from verl.config.sft import SFTDataConfig
from verl.protocol import DataProto
from verl.trainer.sft.conversations import Example, Messages, load_conversations, tokenize
from verl.utils.errors import UserError
from verl.workers.chat_template import ChatTemplate

Augment = Callable[[Messages, random.Random], Messages]
# Rows are sorted by length within so many batches: little padding, and still a random mixture.
BATCHES_SORTED_TOGETHER = 8


@dataclass(frozen=True)
class BatchSums:
    """What losses are divided by: of a whole batch, whichever rank and micro-batch has the rows."""

    weight: float  # the loss weights
    reply_tokens: int  # tokens of weight 1


class SFTBatch(NamedTuple):
    rows: DataProto
    sums: BatchSums


class ConversationData:
    """Conversations as examples, augmented anew in every epoch."""

    def __init__(
        self,
        files: Sequence[str],
        config: SFTDataConfig,
        chat: ChatTemplate,
        augment: Augment | None,
        seed: int,
    ) -> None:
        """Raises UserError when a file, a conversation or the chat template is no good."""
        self._conversations = load_conversations(files, config.messages_key)
        self._config = config
        self._chat = chat
        self._augment = augment
        self._seed = seed
        self._fixed = self._tokenize(self._conversations) if augment is None else []

    def __len__(self) -> int:
        return len(self._conversations)

    @property
    def batches_per_epoch(self) -> int:
        return -(-len(self) // self._config.train_batch_size)

    @property
    def chat_date(self) -> str:
        """What the chat template takes for today."""
        return self._chat.date

    def examples(self, epoch: int) -> list[Example]:
        """All conversations as they are in `epoch`, 0-based."""
        if self._augment is None:
            return self._fixed
        return self._tokenize(
            [
                self._augment(messages, random.Random(f"{self._seed}/{epoch}/{index}"))
                for index, messages in enumerate(self._conversations)
            ]
        )

    def batches(self, epoch: int, ranks: int, first: int = 0) -> Iterator[SFTBatch]:
        """The batches of `epoch` from number `first` on, rows a multiple of `ranks`."""
        examples = self.examples(epoch)
        rng = random.Random(f"{self._seed}/{epoch}")
        order = bucketed_order(list(map(len, examples)), self._config.train_batch_size, rng)
        for rows in order[first:]:
            yield to_batch([examples[row] for row in rows], ranks)

    def _tokenize(self, conversations: list[Messages]) -> list[Example]:
        examples = []
        for index, messages in enumerate(conversations):
            example = tokenize(self._chat, messages, self._config.prompt_weight)
            examples.append(self._fitted(example, index))
        return examples

    def _fitted(self, example: Example, index: int) -> Example:
        limit = self._config.max_length
        if len(example) <= limit:
            return example
        if self._config.truncation == "error":
            raise UserError(
                f"conversation {index} has {len(example)} tokens and data.max_length={limit}; "
                "raise it, or set data.truncation=right to cut the ends off"
            )
        return Example(example.ids[:limit], example.weight[:limit])


def bucketed_order(lengths: list[int], batch_size: int, rng: random.Random) -> list[list[int]]:
    """All rows in shuffled batches whose rows are of similar length; one batch may be smaller."""
    rows = rng.sample(range(len(lengths)), len(lengths))
    span = batch_size * BATCHES_SORTED_TOGETHER
    batches = []
    for start in range(0, len(rows), span):
        bucket = sorted(rows[start : start + span], key=lambda row: lengths[row])
        batches += [bucket[at : at + batch_size] for at in range(0, len(bucket), batch_size)]
    rng.shuffle(batches)
    return batches


def to_batch(examples: Sequence[Example], ranks: int) -> SFTBatch:
    """(B, S) columns input_ids, attention_mask, response_mask and loss_weight, right-padded.

    `response_mask` marks the tokens with a weight. Rows are added until `ranks` divides them: one
    token each, without weight.
    """
    rows = len(examples) + -len(examples) % ranks
    width = max(map(len, examples))
    ids_BS = torch.zeros((rows, width), dtype=torch.long)
    attention_BS = torch.zeros_like(ids_BS)
    attention_BS[:, 0] = 1
    weight_BS = torch.zeros((rows, width))
    for row, example in enumerate(examples):
        ids_BS[row, : len(example)] = torch.from_numpy(example.ids)
        attention_BS[row, : len(example)] = 1
        weight_BS[row, : len(example)] = torch.from_numpy(example.weight)
    columns = {
        "input_ids": ids_BS,
        "attention_mask": attention_BS,
        "response_mask": (weight_BS > 0).long(),
        "loss_weight": weight_BS,
    }
    sums = BatchSums(float(weight_BS.sum()), int((weight_BS == 1).sum()))
    return SFTBatch(DataProto.from_dict(columns), sums)
