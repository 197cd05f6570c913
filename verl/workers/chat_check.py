"""What a chat template and its tokenizer do to a conversation, before anything depends on it."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

import numpy as np

from verl.utils.errors import UserError
from verl.workers.chat_template import ChatTemplate
from verl.workers.chat_text import ANSWER, REPLY, USER, ChatText, exchange, message

logger = logging.getLogger(__name__)

# What a generation prompt may open and an earlier reply shows by itself.
_REASONING_OPENER = re.compile(r"\s*(<think>\s*(</think>\s*)?)?")


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
    notes, text = [], chat.text
    if text.folds_system:
        notes.append(
            f"{text.name} has no place of its own for a system message: its text goes before the "
            "first user message"
        )
    if _writes_date(text):
        notes.append(
            f"{text.name} writes today's date: it stays {text.date} in this run, also when it is "
            "resumed (model.chat_template_date)"
        )
    if chat.end_id is None:
        notes.append(
            f"{text.name} writes no token of the tokenizer's own after a reply: only the end "
            "tokens of model and tokenizer end one"
        )
    if keeps_reasoning and _drops_reasoning(text):
        notes.append(
            f"{text.name} drops the reasoning of earlier replies, and this run keeps it; "
            "env.context.reasoning=drop plays as the template writes"
        )
    return notes


def _problems(chat: ChatTemplate, continues: bool) -> Iterator[str]:
    if swallowed := _swallowed_markers(chat):
        yield (
            f"the tokenizer makes a control token of {swallowed[0]!r} even where a text only "
            "mentions it, so an observation could end a turn; set model.tokenizer_path to another "
            "tokenizer"
        )
    if not continues:
        return
    chat.resume(np.empty(0, np.int32), [message("user", "-")])
    if _rewrites(chat.text):
        yield (
            f"{chat.text.name} rewrites earlier messages when a conversation goes on, so replies "
            "cannot be told from prompts; use a template that only appends, or "
            "env.context.kind=turn when it plays"
        )


def _writes_date(text: ChatText) -> bool:
    """Whether a prompt depends on the day."""
    prompt = [message("user", USER)]
    return text.of_day("2001-01-01").render(prompt) != text.of_day("2002-02-02").render(prompt)


def _drops_reasoning(text: ChatText) -> bool:
    """Whether it leaves the reasoning of earlier replies out."""
    thought = "0thought0"
    thoughtful = exchange(f"<think>{thought}</think>{REPLY}")
    rendered = text.render([*thoughtful, message("user", ANSWER)])
    return REPLY in rendered and thought not in rendered


def _rewrites(text: ChatText) -> bool:
    """Whether a conversation written at once differs from one continued turn by turn, other than
    by the reasoning of its replies."""
    messages = [*exchange(), *exchange("1reply1", ANSWER), message("user", "1answer1")]
    whole = text.render(messages)
    opening = text.render(messages[:1])
    before, found, rest = whole.partition(REPLY)
    between, again, after = rest.partition("1reply1")
    told = text.after_reply([message("user", ANSWER)])
    last = text.after_reply([message("user", "1answer1")])
    pairs = [(before, opening), (between, told), (after, last)]
    return not (found and again and all(_is_continued(*pair) for pair in pairs))


def _is_continued(earlier: str, prompt: str) -> bool:
    """Whether what stands before a reply later on is its prompt: but for a blank, which is the
    policy's to write, and for an opening of reasoning."""
    earlier = earlier.rstrip()
    return prompt.startswith(earlier) and bool(_REASONING_OPENER.fullmatch(prompt[len(earlier) :]))


def _swallowed_markers(chat: ChatTemplate) -> list[str]:
    """Markers that stay tokens even where they are text."""
    markers = chat.text.markers
    ids = set(chat.encode(" ".join(markers.values())).tolist())
    ids.discard(chat.tokenizer.unk_token_id)
    return sorted(markers[token] for token in ids & markers.keys())
