"""What there is in a game: receptacles, objects and the goal, read from its files."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_FACT = re.compile(r"\((\w+) (\w+)(?: (\w+))?\)")


@dataclass(frozen=True)
class Receptacle:
    """`name` and `location` are identifiers in PDDL; several may stand at one location."""

    type: str
    name: str
    location: str
    is_openable: bool


@dataclass(frozen=True)
class Thing:
    """An object and where it is at the start of the game. `name` is its identifier in PDDL."""

    type: str
    name: str
    place: Receptacle


@dataclass(frozen=True)
class Goal:
    """`target`: a receptacle type, "" when nothing has to be placed; `lamp` the other way round."""

    task_type: str
    object: str
    target: str = ""
    lamp: str = ""


@dataclass(frozen=True)
class Scene:
    """A game without its words. Receptacles and things have a fixed order."""

    receptacles: tuple[Receptacle, ...]
    things: tuple[Thing, ...]
    goal: Goal

    def of_type(self, receptacle_type: str) -> list[Receptacle]:
        """The receptacles of a type."""
        return [r for r in self.receptacles if r.type == receptacle_type]


def read_scene(pddl_problem: str, trajectory: Mapping[str, Any]) -> Scene:
    """The scene of a game file's problem and its traj_data.json.

    Raises KeyError when a part is missing.
    """
    facts = _facts(pddl_problem)
    type_of = {a: b.removesuffix("Type") for fact, a, b in facts if fact.endswith("Type")}
    location_of = {a: b for fact, a, b in facts if fact == "receptacleAtLocation"}
    openable = {a for fact, a, _ in facts if fact == "openable"}
    receptacles = {
        name: Receptacle(type_of[name], name, location, name in openable)
        for name, location in location_of.items()
    }
    things = [
        Thing(type_of[a], a, receptacles[b]) for fact, a, b in facts if fact == "inReceptacle"
    ]
    return Scene(tuple(receptacles.values()), tuple(things), _goal(trajectory))


def readable_names(pddl_problem: str) -> dict[str, str]:
    """Identifiers in lower case -> what the game calls them, such as "mug 2".

    ALFWorld numbers the things of one kind downwards in the order of their identifiers.
    """
    kinds: dict[str, list[str]] = defaultdict(list)
    identifiers = {name.lower() for _, *names in _facts(pddl_problem) for name in names}
    for name in sorted(identifiers):
        kind, found, _ = name.partition("_bar_")
        if found:
            kinds[kind + "basin" * ("basin" in name)].append(name)
    return {
        name: f"{kind} {len(names) - place}"
        for kind, names in kinds.items()
        for place, name in enumerate(names)
    }


def _facts(pddl_problem: str) -> list[tuple[str, str, str]]:
    """(predicate, first argument, second one or "") of the start of the game."""
    return _FACT.findall(pddl_problem.partition("(:init")[2].partition("(:goal")[0])


def _goal(trajectory: Mapping[str, Any]) -> Goal:
    task_type, wanted = trajectory["task_type"], trajectory["pddl_params"]
    if task_type == "look_at_obj_in_light":
        return Goal(task_type, wanted["object_target"], lamp=wanted["toggle_target"])
    return Goal(task_type, wanted["object_target"], target=wanted["parent_target"])
