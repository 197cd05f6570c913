"""A tokenizer's chat template as exact tokens: for rollouts, for cloning and for what ends a reply.

Whatever stands in a message is text. A text that spells one of the template's own markers (the end
of a turn, the start of the assistant's) is encoded as the characters that it is, whoever wrote it.
Shapes: T tokens.
"""

from __future__ import annotations

import datetime
import re
from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any, cast

import numpy as np
from jinja2 import TemplateError
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import PreTrainedTokenizerBase

TOKEN_DTYPE = np.int32
Message = dict[str, str]

# Tags that policies write in their replies. Where a tokenizer has them as tokens, they are no
# markers of the template: models, prompts and demonstrations go on using them as such.
FORMAT_TAGS = frozenset({"<think>", "</think>", "<action>", "</action>"})

# Stands inside a marker that is text, until the text is encoded in the pieces around it. A Unicode
# noncharacter, which no text that is exchanged may hold.
_BREAK = "\ufdd0"

# What the messages of a probing conversation say.
_SYSTEM, _USER, _REPLY, _ANSWER, _THOUGHT = "0system0", "0ask0", "0reply0", "0answer0", "0thought0"

# What a generation prompt may write for the policy and an earlier reply does not show.
_GIVEN_REASONING = re.compile(r"(?:<think>\s*(?:</think>\s*)?)?\Z")
_THINK = re.compile(r"\s*<think>\s*")
_REASONING_OPENER = re.compile(r"\s*(<think>\s*(</think>\s*)?)?")


class ChatTemplate:
    """Opens a conversation, continues it after a sampled reply, and reads replies."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        variables: Mapping[str, Any] | None = None,
        date: str | None = None,
        end_ids: Collection[int] = (),
    ) -> None:
        """
        Args:
            variables: of the template (`model.chat_template_kwargs`).
            date: ISO; what `strftime_now` of the template writes. None: today.
            end_ids: tokens at which the model ends replies, besides those of the tokenizer and
                the template.

        Raises:
            ValueError: the tokenizer has no chat template, or the template reads no such variable.
        """
        if tokenizer.chat_template is None:
            raise ValueError(
                f"the tokenizer '{tokenizer.name_or_path}' has no chat template to write messages "
                "with; use an instruct model or put a chat_template.jinja beside its tokenizer"
            )
        self.tokenizer = tokenizer
        self._variables = dict(variables or {})
        self._date = datetime.datetime.fromisoformat(date or datetime.date.today().isoformat())
        self._configured_end_ids = frozenset(end_ids)
        self._check_variables()

    @property
    def name(self) -> str:
        """For messages to the user."""
        return f"the chat template of '{self.tokenizer.name_or_path}'"

    # --- conversations --------------------------------------------------------------------------

    def opening(self, system: str | None, user: str) -> np.ndarray:
        """Tokens up to the first response, (T,). Raises ValueError when the template refuses."""
        messages = [] if system is None else [{"role": "system", "content": system}]
        return self.start([*messages, {"role": "user", "content": user}])

    def start(self, messages: Sequence[Message]) -> np.ndarray:
        """The same for any messages before the first reply."""
        return self._encode(self._render(messages))

    def continuation(self, response_ids: np.ndarray, user: str) -> np.ndarray:
        """Tokens between a sampled response and the next one, (T,). See `resume`."""
        return self.resume(response_ids, [{"role": "user", "content": user}])

    def resume(self, response_ids: np.ndarray, messages: Sequence[Message]) -> np.ndarray:
        """Tokens between a sampled response and the next one, (T,), with `messages` in between.

        They hold what the template puts after a reply (the end-of-turn token, a line break), the
        messages and the next generation prompt. What of this the policy has sampled itself is
        left out: normally the end-of-turn token, nothing after a cut by length or stop string.

        Raises:
            ValueError: the template refuses the conversation, or loses its replies.
        """
        ids = self._encode(self._after_reply(messages))
        return ids[self._sampled(response_ids, ids) :]

    def reply(self, content: str) -> np.ndarray:
        """A reply as a policy would sample it, with the end token if the template has one, (T,).

        Raises:
            ValueError: the template does not write all of it after its generation prompt.
        """
        return np.concatenate([self._encode(self._reply_text(content)), self._closing])

    def without_reasoning(self, prompt_ids: np.ndarray, response_ids: np.ndarray) -> np.ndarray:
        """Prompt and response as later prompts show them where reasoning is dropped, (T,).

        Up to its last `</think>` the response is left out, and so is what the prompt's end has of
        the reasoning. Reasoning that was never closed stays.
        """
        opener = self._tokens(_GIVEN_REASONING.findall(self._reply_prefix)[0])
        if opener and prompt_ids[-len(opener) :].tolist() == opener:
            prompt_ids = prompt_ids[: -len(opener)]
        return np.concatenate([prompt_ids, response_ids[self._reasoning_length(response_ids) :]])

    def _reasoning_length(self, ids: np.ndarray) -> int:
        """Tokens up to the last `</think>`, and the blank ones behind it."""

        def closed(length: int) -> int:
            return self._text(ids[:length]).lower().count("</think>")

        if not closed(len(ids)):
            return 0
        length = bisect_left(range(len(ids)), closed(len(ids)), key=closed)
        while length < len(ids) and self._text(ids[length : length + 1]).isspace():
            length += 1
        return length

    def encode(self, text: str) -> np.ndarray:
        """A text by itself, (T,): none of the template's markers comes of it."""
        return self._encode(self._as_text(text))

    def count(self, text: str) -> int:
        """Tokens of a text by itself."""
        return len(self.encode(text))

    def decode(self, ids: np.ndarray) -> str:
        """The text of a response, all of it but the end and padding tokens behind it."""
        length = len(ids)
        while length and int(ids[length - 1]) in self._silent_ids:
            length -= 1
        return self._text(ids[:length])

    def has_markers(self, text: str) -> bool:
        """Whether it spells one of the template's markers."""
        return self._markers is not None and self._markers.search(text) is not None

    # --- what the template is like --------------------------------------------------------------

    @cached_property
    def end_id(self) -> int | None:
        """The token that the template writes first after a reply. None where it writes none."""
        return next((token for token in self._end if token in self._marker_texts), None)

    @property
    def opens_reasoning(self) -> bool:
        """Whether the generation prompt ends within `<think>`."""
        return self._reply_prefix.rfind("<think>") > self._reply_prefix.rfind("</think>")

    @cached_property
    def folds_system(self) -> bool:
        """Whether a system text has to go into the first user message: the template refuses it,
        leaves it out, or moves it to a later message as the conversation grows."""
        try:
            text = self._template(
                [_message("system", _SYSTEM), *_exchange(), _message("user", _ANSWER)], True
            )
        except TemplateError:
            return True
        return not 0 <= text.find(_SYSTEM) < text.find(_USER)

    @cached_property
    def drops_reasoning(self) -> bool:
        """Whether it leaves the reasoning of earlier replies out."""
        thoughtful = f"<think>{_THOUGHT}</think>{_REPLY}"
        text = self._render([*_exchange(thoughtful), _message("user", _ANSWER)])
        return _REPLY in text and _THOUGHT not in text

    @cached_property
    def writes_date(self) -> bool:
        """Whether a prompt depends on the day."""
        days = (datetime.datetime(2001, 1, 1), datetime.datetime(2002, 2, 2))
        messages = [_message("user", _USER)]
        first, second = (self._template(messages, True, strftime_now=day.strftime) for day in days)
        return first != second

    @property
    def pad_id(self) -> int:
        """`load_tokenizer` sees to it that there is one."""
        return cast(int, self.tokenizer.pad_token_id)

    @property
    def date(self) -> str:
        return self._date.date().isoformat()

    def rewrites(self) -> bool:
        """Whether a conversation written at once differs from one continued turn by turn, other
        than by the reasoning of its replies."""
        messages = [*_exchange(), *_exchange("1reply1", _ANSWER), _message("user", "1answer1")]
        whole = self._render(messages)
        opening = self._render(messages[:1])
        before, found, rest = whole.partition(_REPLY)
        between, again, after = rest.partition("1reply1")
        told = self._after_reply([_message("user", _ANSWER)])
        last = self._after_reply([_message("user", "1answer1")])
        pairs = [(before, opening), (between, told), (after, last)]
        return not (found and again and all(_is_continued(*pair) for pair in pairs))

    def swallowed_markers(self) -> list[str]:
        """Markers that stay tokens even where they are text."""
        ids = set(self.encode(" ".join(self._marker_texts.values())).tolist())
        ids.discard(self.tokenizer.unk_token_id)
        return sorted(self._marker_texts[token] for token in ids & self._marker_texts.keys())

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Every token that ends a reply."""
        ends = (self.end_id, cast("int | None", self.tokenizer.eos_token_id))
        return self._configured_end_ids.union(token for token in ends if token is not None)

    # --- inside ---------------------------------------------------------------------------------

    @cached_property
    def _silent_ids(self) -> frozenset[int]:
        ids = self.end_ids if self.tokenizer.pad_token_id is None else self.end_ids | {self.pad_id}
        return frozenset(
            token for token in ids if self.tokenizer.convert_ids_to_tokens(token) not in FORMAT_TAGS
        )

    @cached_property
    def _marker_texts(self) -> dict[int, str]:
        """The markers: special tokens, and added ones that the template writes."""
        written = ""
        with suppress(TemplateError):  # it may refuse what no `turn` context shows it
            written += self._template([_message("user", _USER)], True)
            written += self._template([*_exchange(), _message("user", _ANSWER)], True)
        special = set(self.tokenizer.all_special_ids)
        return {
            token: added.content
            for token, added in self.tokenizer.added_tokens_decoder.items()
            if added.content not in FORMAT_TAGS
            and len(added.content) > 1  # a character cannot be encoded in pieces
            and (
                added.special
                or token in special
                or (added.content in written and not re.fullmatch(r"[\w\s]*", added.content))
            )
        }

    @cached_property
    def _markers(self) -> re.Pattern[str] | None:
        """Matches the first character of every marker in a text, those that overlap included."""
        texts = sorted(self._marker_texts.values(), key=len, reverse=True)
        if not texts:
            return None
        first = "".join({re.escape(text[0]) for text in texts})
        # In any case: there are tokenizers that lower it.
        pattern = rf"(?=[{first}])(?=(?:{'|'.join(map(re.escape, texts))}))(.)"
        return re.compile(pattern, re.IGNORECASE | re.DOTALL)

    @cached_property
    def _reply_prefix(self) -> str:
        """The generation prompt."""
        return self._render([_message("user", _USER)]).rpartition(_USER)[2]

    @cached_property
    def _end_of_conversation(self) -> str:
        return self._render(_exchange(), prompts_reply=False).rpartition(_REPLY)[2]

    @cached_property
    def _end(self) -> list[int]:
        """What the template writes after a reply, whatever comes then."""
        try:
            after = self._after_reply([_message("user", _ANSWER)])
        except ValueError:  # of a template for fresh prompts only
            return []
        return self._encode(after.partition(_ANSWER)[0]).tolist()

    @cached_property
    def _closing(self) -> np.ndarray:
        """What ends a reply: up to the first marker after it."""
        length = 0 if self.end_id is None else self._end.index(self.end_id) + 1
        return np.asarray(self._end[:length], TOKEN_DTYPE)

    def _reply_text(self, content: str) -> str:
        """What stands between the generation prompt and the end token."""
        if self.opens_reasoning:  # then it is for the policy to write what comes next
            opener = _THINK.match(content)
            if opener is None:
                raise ValueError(
                    f"{self.name} begins every reply with <think>, and the reply {content[:60]!r} "
                    "does not; use another template or other model.chat_template_kwargs"
                )
            return self._as_text(content[opener.end() :])
        prompt = self._render([_message("user", _USER)])
        conversation = [_message("user", _USER), _message("assistant", content)]
        whole = self._render(conversation, prompts_reply=False)
        text = whole.removeprefix(prompt).removesuffix(self._end_of_conversation)
        is_whole = whole == prompt + text + self._end_of_conversation
        if not is_whole or _signs(self._as_text(content)) not in _signs(text):
            raise ValueError(
                f"{self.name} does not write the whole reply {content[:60]!r} after its generation "
                "prompt; use another template or other model.chat_template_kwargs"
            )
        return text

    def _after_reply(self, messages: Sequence[Message]) -> str:
        rendered = self._render([*_exchange(), *messages])
        _, found, after_reply = rendered.partition(_REPLY)
        if not found:
            raise ValueError(
                f"{self.name} drops or rewrites earlier replies; set env.context.kind=turn or use "
                "another template"
            )
        return after_reply

    def _sampled(self, response_ids: np.ndarray, after_reply: np.ndarray) -> int:
        """How many tokens after a reply the response has at its end already."""
        overlap = _overlap(response_ids, after_reply)
        if overlap == 0 and len(self._closing) > 1:  # it may leave out a blank before the end token
            before_end = len(self._closing) - 1
            overlap = _overlap(response_ids, after_reply[before_end:])
            return before_end + overlap if overlap else 0
        return overlap

    def _as_text(self, text: str) -> str:
        text = text.replace(_BREAK, "\N{REPLACEMENT CHARACTER}")
        return text if self._markers is None else self._markers.sub(rf"\1{_BREAK}", text)

    def _render(self, messages: Sequence[Message], *, prompts_reply: bool = True) -> str:
        """The template's text; markers in what the messages say are broken up by `_BREAK`."""
        messages = [
            {**message, "content": self._as_text(message["content"])}
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

    def _folded(self, messages: Sequence[Message]) -> Sequence[Message]:
        if [message["role"] for message in messages[:2]] != ["system", "user"]:
            return messages
        if not self.folds_system:
            return messages
        system, user, *others = messages
        return [_message("user", f"{system['content']}\n\n{user['content']}"), *others]

    def _template(self, messages: Sequence[Message], prompts_reply: bool, **more: Any) -> str:
        variables = {"strftime_now": self._date.strftime, **self._variables, **more}
        text = self.tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=prompts_reply, **variables
        )
        assert isinstance(text, str), "because of tokenize=False"
        return text

    def _text(self, ids: np.ndarray) -> str:
        text = self.tokenizer.decode(
            ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return cast(str, text)  # of one sequence

    def _encode(self, rendered: str) -> np.ndarray:
        ids = [token for piece in rendered.split(_BREAK) for token in self._tokens(piece)]
        return np.asarray(ids, TOKEN_DTYPE)

    def _tokens(self, text: str) -> list[int]:
        # The template writes BOS and the like itself; the tokenizer must not add them once more.
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        if not text[:1].isspace():
            return ids
        # Some tokenizers put a blank before every text, which would be one too many here.
        before = self.tokenizer.encode(_REPLY, add_special_tokens=False)
        together = self.tokenizer.encode(_REPLY + text, add_special_tokens=False)
        return together[len(before) :] if together[: len(before)] == before else ids

    def _check_variables(self) -> None:
        if not self._variables:
            return
        syntax = ImmutableSandboxedEnvironment(
            extensions=["jinja2.ext.loopcontrols"], trim_blocks=True, lstrip_blocks=True
        )
        template = self.tokenizer.get_chat_template()
        template = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", template)
        read = find_undeclared_variables(syntax.parse(template))
        read -= {"messages", "add_generation_prompt", "raise_exception", "strftime_now"}
        read -= set(self.tokenizer.special_tokens_map)
        for name in self._variables:
            if name not in read:
                raise ValueError(
                    f"model.chat_template_kwargs.{name} is nothing that {self.name} reads; "
                    f"it reads {', '.join(sorted(read)) or 'no variable'}"
                )


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _exchange(reply: str = _REPLY, user: str = _USER) -> list[Message]:
    return [_message("user", user), _message("assistant", reply)]


def _signs(text: str) -> str:
    return "".join(text.split())


def _is_continued(earlier: str, prompt: str) -> bool:
    """Whether what stands before a reply later on is its prompt: but for a blank, which is the
    policy's to write, and for an opening of reasoning."""
    earlier = earlier.rstrip()
    return prompt.startswith(earlier) and bool(_REASONING_OPENER.fullmatch(prompt[len(earlier) :]))


def _overlap(head: np.ndarray, tail: np.ndarray) -> int:
    """Length of the longest end of `head` that is also the beginning of `tail`."""
    head = head[max(len(head) - len(tail), 0) :]
    starts = np.flatnonzero(head == tail[0]) if len(tail) else ()
    ends = (head[start:] for start in starts)
    return next((len(end) for end in ends if np.array_equal(end, tail[: len(end)])), 0)
