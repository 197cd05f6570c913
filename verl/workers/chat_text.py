"""What a chat template writes, as text. `chat_template.py` makes tokens of it.

Whatever stands in a message is text. Where it spells one of the template's own markers (the end of
a turn, the start of the assistant's), the marker is broken up by `BREAK`, whoever wrote it.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

from jinja2 import TemplateError
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import PreTrainedTokenizerBase

Message = dict[str, str]

# Tags that policies write in their replies. Where a tokenizer has them as tokens, they are no
# markers of the template: models, prompts and demonstrations go on using them as such.
FORMAT_TAGS = frozenset({"<think>", "</think>", "<action>", "</action>"})

# Stands inside a marker that is text, until the text is encoded in the pieces around it. A Unicode
# noncharacter, which no text that is exchanged may hold.
BREAK = "\ufdd0"

# What the messages of a probing conversation say.
SYSTEM, USER, REPLY, ANSWER = "0system0", "0ask0", "0reply0", "0answer0"

_THINK = re.compile(r"\s*<think>\s*")


def message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def exchange(reply: str = REPLY, user: str = USER) -> list[Message]:
    return [message("user", user), message("assistant", reply)]


class ChatText:
    """A tokenizer's template with its variables and its day."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        variables: Mapping[str, Any] | None = None,
        date: str | None = None,
    ) -> None:
        """
        Args:
            variables: of the template (`model.chat_template_kwargs`).
            date: ISO; what `strftime_now` of the template writes. None: today.

        Raises:
            ValueError: the tokenizer has no chat template, or the template reads no such variable.
        """
        if tokenizer.chat_template is None:
            raise ValueError(
                f"the tokenizer '{tokenizer.name_or_path}' has no chat template to write messages "
                "with; use an instruct model or put a chat_template.jinja beside its tokenizer"
            )
        self._tokenizer = tokenizer
        self._variables = dict(variables or {})
        self._date = datetime.datetime.fromisoformat(date or datetime.date.today().isoformat())
        self._check_variables()

    @property
    def name(self) -> str:
        """For messages to the user."""
        return f"the chat template of '{self._tokenizer.name_or_path}'"

    @property
    def date(self) -> str:
        return self._date.date().isoformat()

    def of_day(self, date: str) -> ChatText:
        """The same on another day."""
        return ChatText(self._tokenizer, variables=self._variables, date=date)

    # --- conversations --------------------------------------------------------------------------

    def render(self, messages: Sequence[Message], *, prompts_reply: bool = True) -> str:
        """All messages, and the generation prompt. Raises ValueError when the template refuses."""
        messages = [
            {**message, "content": self.as_text(message["content"])}
            for message in self._folded(messages)
        ]
        try:
            return self._template(messages, prompts_reply)
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise ValueError(
                f"{self.name} refuses a conversation of {roles} ({error}); put another "
                "chat_template.jinja beside its tokenizer"
            ) from error

    def reply(self, content: str) -> str:
        """What stands between the generation prompt and the end token.

        Raises:
            ValueError: the template does not write all of it after its generation prompt.
        """
        if self.opens_reasoning:  # then it is for the policy to write what comes next
            opener = _THINK.match(content)
            if opener is None:
                raise ValueError(
                    f"{self.name} begins every reply with <think>, and the reply {content[:60]!r} "
                    "does not; use another template or other model.chat_template_kwargs"
                )
            return self.as_text(content[opener.end() :])
        prompt = self.render([message("user", USER)])
        whole = self.render(exchange(content), prompts_reply=False)
        text = whole.removeprefix(prompt).removesuffix(self._end_of_conversation)
        is_whole = whole == prompt + text + self._end_of_conversation
        if not is_whole or _signs(self.as_text(content)) not in _signs(text):
            raise ValueError(
                f"{self.name} does not write the whole reply {content[:60]!r} after its generation "
                "prompt; use another template or other model.chat_template_kwargs"
            )
        return text

    def after_reply(self, messages: Sequence[Message]) -> str:
        """What comes between a reply and the next one, with `messages` in between.

        Raises:
            ValueError: the template refuses the conversation, or loses its replies.
        """
        rendered = self.render([*exchange(), *messages])
        _, found, after_reply = rendered.partition(REPLY)
        if not found:
            raise ValueError(
                f"{self.name} drops or rewrites earlier replies; set env.context.kind=turn or use "
                "another template"
            )
        return after_reply

    @cached_property
    def reply_prefix(self) -> str:
        """The generation prompt."""
        return self.render([message("user", USER)]).rpartition(USER)[2]

    @property
    def opens_reasoning(self) -> bool:
        """Whether the generation prompt ends within `<think>`."""
        return self.reply_prefix.rfind("<think>") > self.reply_prefix.rfind("</think>")

    @cached_property
    def folds_system(self) -> bool:
        """Whether a system text has to go into the first user message: the template refuses it,
        leaves it out, or moves it to a later message as the conversation grows."""
        try:
            text = self._template(
                [message("system", SYSTEM), *exchange(), message("user", ANSWER)], True
            )
        except TemplateError:
            return True
        return not 0 <= text.find(SYSTEM) < text.find(USER)

    # --- markers --------------------------------------------------------------------------------

    @cached_property
    def markers(self) -> dict[int, str]:
        """Special tokens, and added ones that the template writes, by their ids."""
        written = ""
        with suppress(TemplateError):  # it may refuse what no `turn` context shows it
            written += self._template([message("user", USER)], True)
            written += self._template([*exchange(), message("user", ANSWER)], True)
        special = set(self._tokenizer.all_special_ids)
        return {
            token: added.content
            for token, added in self._tokenizer.added_tokens_decoder.items()
            if added.content not in FORMAT_TAGS
            and len(added.content) > 1  # a character cannot be encoded in pieces
            and (
                added.special
                or token in special
                or (added.content in written and not re.fullmatch(r"[\w\s]*", added.content))
            )
        }

    def has_markers(self, text: str) -> bool:
        """Whether it spells one."""
        return self._marker_starts is not None and self._marker_starts.search(text) is not None

    def as_text(self, text: str) -> str:
        """`text` with its markers broken up."""
        text = text.replace(BREAK, "\N{REPLACEMENT CHARACTER}")
        return text if self._marker_starts is None else self._marker_starts.sub(rf"\1{BREAK}", text)

    @cached_property
    def _marker_starts(self) -> re.Pattern[str] | None:
        """Matches the first character of every marker in a text, those that overlap included."""
        texts = sorted(self.markers.values(), key=len, reverse=True)
        if not texts:
            return None
        first = "".join({re.escape(text[0]) for text in texts})
        # In any case: there are tokenizers that lower it.
        pattern = rf"(?=[{first}])(?=(?:{'|'.join(map(re.escape, texts))}))(.)"
        return re.compile(pattern, re.IGNORECASE | re.DOTALL)

    # --- inside ---------------------------------------------------------------------------------

    @cached_property
    def _end_of_conversation(self) -> str:
        return self.render(exchange(), prompts_reply=False).rpartition(REPLY)[2]

    def _folded(self, messages: Sequence[Message]) -> Sequence[Message]:
        if [message["role"] for message in messages[:2]] != ["system", "user"]:
            return messages
        if not self.folds_system:
            return messages
        system, user, *others = messages
        return [message("user", f"{system['content']}\n\n{user['content']}"), *others]

    def _template(self, messages: Sequence[Message], prompts_reply: bool) -> str:
        variables = {"strftime_now": self._date.strftime, **self._variables}
        text = self._tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=prompts_reply, **variables
        )
        assert isinstance(text, str), "because of tokenize=False"
        return text

    def _check_variables(self) -> None:
        if not self._variables:
            return
        syntax = ImmutableSandboxedEnvironment(
            extensions=["jinja2.ext.loopcontrols"], trim_blocks=True, lstrip_blocks=True
        )
        template = self._tokenizer.get_chat_template()
        template = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", template)
        read = find_undeclared_variables(syntax.parse(template))
        read -= {"messages", "add_generation_prompt", "raise_exception", "strftime_now"}
        read -= set(self._tokenizer.special_tokens_map)
        for name in self._variables:
            if name not in read:
                raise ValueError(
                    f"model.chat_template_kwargs.{name} is nothing that {self.name} reads; "
                    f"it reads {', '.join(sorted(read)) or 'no variable'}"
                )


def _signs(text: str) -> str:
    return "".join(text.split())
