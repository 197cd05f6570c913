"""Reading a game file, whichever version of ALFWorld wrote it.

Files of the 0.2 era hold a grammar that says "put X in/on Y"; the installed version's says "move X
to Y". The state and goal of a game are the same in both, so that an older file is played with the
installed domain and grammar: one set of commands, whatever was downloaded when.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from alfworld.info import ALFRED_PDDL_PATH, ALFRED_TWL2_PATH

_GOAL = re.compile(r'Your task is to: ((?:[^"\\]|\\.)*?)\.?"')
_PLACEHOLDER = "UNKNOWN GOAL"
_REMEDY = "download the games again with `alfworld-download --force`, or generate new ones"


def read_game(path: Path) -> dict[str, Any]:
    """The game at `path` with the installed domain and grammar.

    Raises ValueError when the file is missing, is not a game, or cannot be upgraded.
    """
    try:
        game = json.loads(path.read_text(encoding="utf-8"))
        domain, grammar = game["pddl_domain"], game["grammar"]
        problem = game["pddl_problem"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"cannot read the ALFWorld game '{path}': {error!r}; {_REMEDY}") from error
    if "(:domain alfred)" not in problem:
        raise ValueError(f"'{path}' is not a game of ALFWorld's domain; {_REMEDY}")
    if is_present(domain, grammar):
        return game
    goal = _GOAL.search(grammar)
    if goal is None:
        raise ValueError(f"'{path}' has an older grammar without the text of its goal; {_REMEDY}")
    return game | {"pddl_domain": installed_domain(), "grammar": installed_grammar(goal[1])}


def is_present(domain: str, grammar: str) -> bool:
    """Whether these are the installed version's."""
    goal = _GOAL.search(grammar)
    return (
        goal is not None and domain == installed_domain() and grammar == installed_grammar(goal[1])
    )


@cache
def installed_domain() -> str:
    """The PDDL of the installed version."""
    return Path(ALFRED_PDDL_PATH).read_text(encoding="utf-8")


def installed_grammar(goal: str) -> str:
    """The installed version's grammar for a game whose goal is, say, "put a mug in desk"."""
    return _grammar_template().replace(_PLACEHOLDER, goal)


@cache
def _grammar_template() -> str:
    return Path(ALFRED_TWL2_PATH).read_text(encoding="utf-8")
