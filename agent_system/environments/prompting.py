"""How a text environment is put in words. An environment brings its rules; the rest is shared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from agent_system.config import ActionFormatConfig
from agent_system.environments.projection import parse_plain, parse_think_action
from agent_system.types import Observation, ParsedAction, Turn

THINK_ACTION_FORMAT = (
    "Answer every observation in two parts. Reason first, inside <think> and </think>: what you "
    "know, what is still missing, what to do about it. Then give one command, inside <action> and "
    "</action>, and stop. Only that command is carried out."
)


def make_prompts(
    rules: str, action_format: ActionFormatConfig, *, list_actions: bool = False
) -> TextPrompts | PlainPrompts:
    """The prompt builder of an action format.

    `list_actions`: show the admissible actions, for environments that have a few dozen of them.
    """
    if action_format.kind == "think_action":
        return TextPrompts(rules, list_actions)
    return PlainPrompts()


class TextPrompts:
    """Instructions for a language model that reasons before it acts. Implements `PromptBuilder`."""

    def __init__(self, rules: str, list_actions: bool) -> None:
        """`rules`: what the environment is and which commands it takes."""
        self._system = f"{rules}\n\n{THINK_ACTION_FORMAT}"
        self._list_actions = list_actions

    def system(self, task_text: str) -> str:
        return self._system

    def first(self, task_text: str, observation: Observation) -> str:
        return f"Task: {_flat(task_text)}\n\n{self._observed(observation)}"

    def next(self, observation: Observation) -> str:
        return self._observed(observation)

    def turn(
        self, task_text: str, history: Sequence[Turn], observation: Observation, step: int
    ) -> str:
        """`history`: the last turns, oldest first; `step` counts all turns so far."""
        parts = [f"Task: {_flat(task_text)}"]
        if history:
            shown = f"the last {len(history)} of {step}" if len(history) < step else f"{step}"
            parts.append(f"Commands so far ({shown}):\n{_replayed(history)}")
        return "\n\n".join([*parts, self._observed(observation)])

    def parse(self, response: str, observation: Observation) -> ParsedAction:
        return _judged(parse_think_action(response), observation)

    def _observed(self, observation: Observation) -> str:
        text = f"Observation:\n{observation.text.strip()}"
        if not self._list_actions or observation.admissible_actions is None:
            return text
        return f"{text}\n\nCommands accepted now:\n" + "\n".join(observation.admissible_actions)


class PlainPrompts:
    """The bare texts, for small models trained on them: the response is the command."""

    def system(self, task_text: str) -> None:
        return None

    def first(self, task_text: str, observation: Observation) -> str:
        return f"{task_text}\n{observation.text}"

    def next(self, observation: Observation) -> str:
        return observation.text

    def turn(
        self, task_text: str, history: Sequence[Turn], observation: Observation, step: int
    ) -> str:
        parts = [task_text, *([_replayed(history)] if history else []), observation.text]
        return "\n".join(parts)

    def parse(self, response: str, observation: Observation) -> ParsedAction:
        return _judged(parse_plain(response), observation)


def _replayed(history: Sequence[Turn]) -> str:
    """Each command with its answer; the last answer is the observation at the prompt's end."""
    lines = []
    for turn in history[:-1]:
        lines.append(f"> {turn.action.text}")
        if turn.observation:  # a summary leaves it out
            lines.append(turn.observation.strip())
    lines.append(f"> {history[-1].action.text}")
    return "\n".join(lines)


def _judged(action: ParsedAction, observation: Observation) -> ParsedAction:
    if observation.admissible_actions is None:
        return action
    return replace(action, is_admissible=action.text in observation.admissible_actions)


def _flat(text: str) -> str:
    return " ".join(text.split())
