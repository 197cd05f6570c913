"""What a chat template and its tokenizer do to a conversation, before anything depends on it."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np

from verl.utils.errors import UserError
from verl.workers.chat_template import ChatTemplate

logger = logging.getLogger(__name__)


def check_chat(chat: ChatTemplate, *, continues: bool) -> None:
    """Refuse a template or tokenizer with which a run would be silently wrong.

    `continues`: conversations go on after a reply (the trajectory context, or cloning).

    Raises:
        UserError: the first problem found.
    """
    try:
        for problem in _problems(chat, continues):
            raise UserError(problem)
    except ValueError as error:  # the template refuses
        raise UserError(str(error)) from error


def tell_chat_notes(chat: ChatTemplate, *, keeps_reasoning: bool) -> None:
    """On the console and in `run.log`: where the tokens are not what a user would expect."""
    for note in chat_notes(chat, keeps_reasoning=keeps_reasoning):
        logger.info(note)


def chat_notes(chat: ChatTemplate, *, keeps_reasoning: bool) -> list[str]:
    """A sentence each. `keeps_reasoning`: prompts show that of earlier replies."""
    notes = []
    if chat.folds_system:
        notes.append(
            f"{chat.name} has no place of its own for a system message: its text goes before the "
            "first user message"
        )
    if chat.writes_date:
        notes.append(
            f"{chat.name} writes today's date: it stays {chat.date} in this run, also when it is "
            "resumed (model.chat_template_date)"
        )
    if chat.end_id is None:
        notes.append(
            f"{chat.name} writes no token of the tokenizer's own after a reply: only the end "
            "tokens of model and tokenizer end one"
        )
    if keeps_reasoning and chat.drops_reasoning:
        notes.append(
            f"{chat.name} drops the reasoning of earlier replies, and this run keeps it; "
            "env.context.reasoning=drop plays as the template writes"
        )
    return notes


def _problems(chat: ChatTemplate, continues: bool) -> Iterator[str]:
    if swallowed := chat.swallowed_markers():
        yield (
            f"the tokenizer makes a control token of {swallowed[0]!r} even where a text only "
            "mentions it, so an observation could end a turn; set model.tokenizer_path to another "
            "tokenizer"
        )
    if not continues:
        return
    chat.resume(np.empty(0, np.int32), [{"role": "user", "content": "-"}])
    if chat.rewrites():
        yield (
            f"{chat.name} rewrites earlier messages when a conversation goes on, so replies cannot "
            "be told from prompts; use a template that only appends, or env.context.kind=turn "
            "when it plays"
        )
