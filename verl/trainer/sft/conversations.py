"""Conversations from files, and as tokens with a loss weight each.

Shapes: T tokens of one conversation.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from transformers import PreTrainedTokenizerBase

from verl.utils.errors import UserError
from verl.utils.json_lines import lines_of

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


def tokenize(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, prompt_weight: float
) -> Example:
    """Replies, each with its end token, weigh 1; everything else weighs `prompt_weight`.

    Prompts and replies are tokenised apart, as in a rollout, where a reply is sampled and never
    tokenised again: cloning and playing see the same tokens. The first token has weight 0, as
    nothing predicts it.

    Raises:
        UserError: the chat template rewrites what it has written before.
    """
    ids: list[int] = []
    weight: list[float] = []
    for text, is_reply in _segments(tokenizer, messages):
        segment = tokenizer.encode(text, add_special_tokens=False)  # the template writes BOS itself
        ids += segment
        weight += [1.0 if is_reply else prompt_weight] * len(segment)
    weight[0] = 0.0
    return Example(np.asarray(ids, np.int64), np.asarray(weight, np.float32))


def _segments(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[tuple[str, bool]]:
    """(text, is it a reply) in turns; what follows the last reply is left out."""
    segments = []
    written = ""
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = _render(tokenizer, messages[:index], add_generation_prompt=True)
        whole = _render(tokenizer, messages[: index + 1], add_generation_prompt=False)
        if not (prompt.startswith(written) and whole.startswith(prompt)):
            raise UserError(
                f"the chat template of {tokenizer.name_or_path!r} rewrites earlier messages, so "
                "replies cannot be told from prompts; use a template that only appends"
            )
        reply = _up_to_end_token(whole[len(prompt) :], str(tokenizer.eos_token))
        segments += [(prompt[len(written) :], False), (reply, True)]
        written = prompt + reply
    return segments


def _up_to_end_token(text: str, end: str) -> str:
    """A template may write a line break after the end token, which no policy samples."""
    before, found, _ = text.rpartition(end)
    return before + found if found else text


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, *, add_generation_prompt: bool
) -> str:
    text = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=add_generation_prompt
    )
    return cast(str, text)  # because of tokenize=False
