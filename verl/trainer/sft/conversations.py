"""Conversations from files, and as tokens with a loss weight each.

Shapes: T tokens of one conversation.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from verl.utils.errors import UserError
from verl.utils.json_lines import lines_of
from verl.workers.chat_template import ChatTemplate

Messages = list[dict[str, str]]
ROLES = ("system", "user", "assistant")


def load_conversations(files: Sequence[str], messages_key: str) -> list[Messages]:
    """The messages of every row of every file, in order.

    Raises:
        UserError: a file is missing, unreadable, or of another kind than jsonl, json and parquet;
            a row is no conversation with at least one reply.
    """
    conversations = []
    for name in files:
        for number, row in enumerate(_read_rows(Path(name)), start=1):
            conversations.append(_checked(row, messages_key, f"row {number} of {name}"))
    if not conversations:
        raise UserError(f"no conversation in {', '.join(files)}; the files are empty")
    return conversations


def _read_rows(path: Path) -> list[Any]:
    if not path.is_file():
        raise UserError(f"the data file {str(path)!r} does not exist")
    try:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in lines_of(path.read_text("utf-8"))]
        if path.suffix == ".json":
            return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid {path.suffix[1:]}: {error}") from error
    if path.suffix == ".parquet":
        return _read_parquet(path)
    raise UserError(f"{path}: unknown kind of file {path.suffix!r}; use .jsonl, .json or .parquet")


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    if importlib.util.find_spec("pyarrow") is None:
        raise UserError(
            f"reading {path} needs pyarrow; pip install pyarrow, or convert it to jsonl"
        )
    return importlib.import_module("pyarrow.parquet").read_table(path).to_pylist()


def _checked(row: Any, key: str, where: str) -> Messages:
    messages = row.get(key) if isinstance(row, dict) else None
    if not isinstance(messages, list):
        raise UserError(
            f"{where} has no list under {key!r}; set data.messages_key to the right name"
        )
    for message in messages:
        well_formed = isinstance(message, dict) and isinstance(message.get("content"), str)
        if not well_formed or message.get("role") not in ROLES:
            raise UserError(
                f"{where} holds the message {message!r}; each needs a text under 'content' and "
                f"a 'role' out of {', '.join(ROLES)}"
            )
    if not any(message["role"] == "assistant" for message in messages):
        raise UserError(f"{where} has no assistant message, so there is nothing to learn from it")
    return [{"role": message["role"], "content": message["content"]} for message in messages]


@dataclass(frozen=True)
class Example:
    """One conversation: `ids` (T,) int64, `weight` (T,) float32, the loss weight of each token."""

    ids: np.ndarray
    weight: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


def tokenize(chat: ChatTemplate, messages: Messages, prompt_weight: float) -> Example:
    """Replies, each with its end token, weigh 1; everything else weighs `prompt_weight`.

    The tokens are those of a rollout in the trajectory context: prompts and replies are tokenised
    apart, and a reply stays what it was. What follows the last one is left out. The first token has
    weight 0, as nothing predicts it.

    Raises:
        UserError: the chat template refuses the conversation or does not write a whole reply.
    """
    replies = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    ids: list[np.ndarray] = []
    try:
        for start, end in pairwise([-1, *replies]):
            asked = messages[start + 1 : end]
            ids.append(chat.resume(ids[-1], asked) if ids else chat.start(asked))
            ids.append(chat.reply(messages[end]["content"]))
    except ValueError as error:
        raise UserError(str(error)) from error
    weight = [np.full(len(part), 1.0 if i % 2 else prompt_weight) for i, part in enumerate(ids)]
    weight[0][:1] = 0.0
    return Example(np.concatenate(ids).astype(np.int64), np.concatenate(weight).astype(np.float32))
