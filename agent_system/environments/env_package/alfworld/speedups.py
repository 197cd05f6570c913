"""What TextWorld computes anew at every step although it cannot have changed, kept.

The replacements only remember results; texts and commands stay the same (a test compares them).
They rely on the insides of the versions below; with any other version the simulator runs as it is.

- Every command of every step parses its template with a general-purpose parser, and every condition
  of the grammar its query: 30 commands a step, a few hundred distinct texts in all.
- Every symbol of a text gets a deep copy of its context; a shallow one serves, nobody writes to it.
- A game is translated from PDDL four times an episode: at load and at reset, each time once for
  playing and once, optimised, for a planner. Here the first translation is used for all of them;
  a planner that is asked for still answers, it only searches the larger task.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, lru_cache
from importlib.metadata import version
from typing import Any

import fast_downward
from textworld.envs.pddl import textgen
from textworld.logic import Rule

logger = logging.getLogger(__name__)

KNOWN_VERSIONS = {"alfworld": "0.4.2", "textworld": "1.7.0", "fast-downward-textworld": "20.6.4"}


@contextmanager
def speedups() -> Iterator[bool]:
    """Replace the slow functions within the block; yields whether that was done."""
    unknown = unknown_versions()
    if unknown:
        logger.warning("the simulator runs without speed-ups, which do not know %s", unknown)
        yield False
        return
    with ExitStack() as stack:
        for owner, name, replacement in _replacements():
            stack.enter_context(_replaced(owner, name, replacement))
        yield True


def unknown_versions() -> str:
    """The installed packages that the replacements were not written for, "" for none."""
    installed = {name: version(name) for name in KNOWN_VERSIONS}
    return ", ".join(
        f"{name} {installed[name]}"
        for name in KNOWN_VERSIONS
        if installed[name] != KNOWN_VERSIONS[name]
    )


def _replacements() -> list[tuple[Any, str, Any]]:
    parse_query = cache(Rule.parse_conjunctive_query)
    return [
        (textgen, "_parse_and_convert", _remembering_parser(textgen._parse_and_convert)),
        (Rule, "parse_conjunctive_query", staticmethod(parse_query)),
        (textgen, "copy_context", _copy_context),
        (fast_downward, "pddl2sas", _one_translation(fast_downward.pddl2sas)),
    ]


def _remembering_parser(parse: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    parse_once = cache(parse)

    def remembered(text: str, rule_name: str, **_: Any) -> list[Any]:
        return [_fresh(symbol) for symbol in parse_once(text, rule_name=rule_name)]

    return remembered


def _fresh(symbol: Any) -> Any:
    """A copy to hang a context on: deriving a text writes to its symbols."""
    copied = copy.copy(symbol)
    for name, value in vars(symbol).items():
        if isinstance(value, textgen.Symbol):
            setattr(copied, name, _fresh(value))
    return copied


def _copy_context(context: dict[str, Any]) -> dict[str, Any]:
    copied = {"variables": dict(context["variables"]), "mapping": dict(context["mapping"])}
    return {**context, **copied}


def _one_translation(translate: Callable[..., Any]) -> Callable[..., Any]:
    # the last game's only: its task and operators are some ten megabytes
    translate_once = lru_cache(maxsize=1)(translate)

    def remembered(domain: str, problem: str, **_: Any) -> Any:
        return translate_once(domain, problem)

    return remembered


@contextmanager
def _replaced(owner: Any, name: str, replacement: Any) -> Iterator[None]:
    original = vars(owner)[name]  # a classmethod as such, not bound
    setattr(owner, name, replacement)
    try:
        yield
    finally:
        setattr(owner, name, original)
