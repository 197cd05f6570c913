"""What an environment says, checked and made fit to be tokenized, shown and logged, where it
enters. Whoever wrote the text: nothing behind this has to ask what it may hold."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from agent_system.types import Observation

# Control characters but tab and line ends, which terminals obey; and halves of surrogate pairs,
# which UTF-8 cannot hold.
UNFIT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def received_text(text: Any, what: str, max_chars: int) -> str:
    """`text` without unfit characters; of one that is too long, the two ends.

    Raises:
        ValueError: it is no text.
    """
    if not isinstance(text, str):
        raise ValueError(f"{what} is a {type(text).__name__}; it has to be a text (str)")
    if len(text) > max_chars:
        half = max_chars // 2
        text = f"{text[:half]} [{len(text) - 2 * half} characters left out] {text[-half:]}"
    return UNFIT.sub(REPLACEMENT, text)


def received_observation(
    text: Any, info: Mapping[str, Any], max_chars: int
) -> tuple[Observation, dict[str, Any]]:
    """An observation and its info, without the admissible actions, which become part of the former.

    Raises:
        ValueError: something is missing or of another kind than it has to be.
    """
    info = dict(info)
    if missing := [key for key in ("score", "success") if key not in info]:
        raise ValueError(f"info lacks {' and '.join(missing)}")
    received_number(info["score"], "info['score']")
    admissible = info.pop("admissible_actions", None)
    given = [text, *(admissible or ())]
    texts = [
        received_text(text, "the observation", max_chars),
        *(received_text(action, "an admissible action", max_chars) for action in admissible or ()),
    ]
    if "task_text" in info:
        given.append(info["task_text"])
        texts.append(received_text(info["task_text"], "info['task_text']", max_chars))
        info["task_text"] = texts[-1]
    actions = None if admissible is None else tuple(texts[1 : 1 + len(admissible)])
    return Observation(texts[0], actions, cleaned=texts != given), info


def received_number(value: Any, what: str) -> float:
    """Raises ValueError when it is no finite number."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{what} is {value!r}; it has to be a finite number")
    return number
