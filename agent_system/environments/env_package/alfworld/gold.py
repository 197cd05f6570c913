"""Winning commands of a game, by someone who knows where everything is.

ALFWorld's planner searches for a second or more and its hand-coded player is not deterministic;
with the scene known, the way to each of the six goals can be written down directly.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from agent_system.environments.env_package.alfworld.game_files import read_game
from agent_system.environments.env_package.alfworld.scene import (
    Receptacle,
    Scene,
    Thing,
    read_scene,
    readable_names,
)


@dataclass(frozen=True)
class Treatment:
    """What is done to the object on its way: with which action, and which receptacle."""

    verb: str
    allowed: str  # the key of ALFWorld's table of objects
    place: str


TREATMENTS: Mapping[str, Treatment] = MappingProxyType(
    {
        "pick_clean_then_place_in_recep": Treatment("clean", "Cleanable", "SinkBasin"),
        "pick_heat_then_place_in_recep": Treatment("heat", "Heatable", "Microwave"),
        "pick_cool_then_place_in_recep": Treatment("cool", "Coolable", "Fridge"),
    }
)
TWO_OBJECTS = "pick_two_obj_and_place"

# A command template and the identifiers that fill it.
Action = tuple[str, tuple[str, ...]]


def gold_path(game_file: Path) -> list[str]:
    """The commands that win the game, from its two files; nothing is played.

    Raises ValueError when the game cannot be read, OSError without its traj_data.json.
    """
    problem = read_game(game_file)["pddl_problem"]
    trajectory = json.loads(game_file.with_name("traj_data.json").read_text(encoding="utf-8"))
    return commands(read_scene(problem, trajectory), problem)


def commands(scene: Scene, pddl_problem: str) -> list[str]:
    """The plan of a scene in the game's words."""
    names = readable_names(pddl_problem)
    return [
        template.format(*(names[name.lower()] for name in identifiers))
        for template, identifiers in plan(scene)
    ]


def check_win(path: Sequence[str], data: Mapping[str, Any], simulator: Any) -> None:
    """Play a game. Raises RuntimeError when it is not won exactly with the last command."""
    simulator.load(data)
    won = [bool(simulator.reset()["won"])]
    for command in path:
        state, _, _ = simulator.step(command)
        won.append(bool(state["won"]))
    if won != [False] * len(path) + [True]:
        raise RuntimeError(f"the commands {path} do not win with the last one, but: {won}")


def plan(scene: Scene) -> list[Action]:
    """Actions from the start of the game to its goal."""
    return _Planner(scene).plan()


class _Planner:
    """Writes down the way, object by object; keeps track of the place and of what was opened."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._goal = scene.goal
        self._location = ""
        self._opened: set[Receptacle] = set()
        self._actions: list[Action] = []

    def plan(self) -> list[Action]:
        target = self._target()
        for thing in self._to_fetch(target):
            self._fetch(thing)
            self._treat(thing)
            if target is not None:
                self._put(thing, target)
        if self._goal.lamp:
            lamp = next(thing for thing in self._scene.things if thing.type == self._goal.lamp)
            self._visit(lamp.place)
            self._do("use {}", lamp.name)
        return self._actions

    def _target(self) -> Receptacle | None:
        """The receptacle of the goal's type that already holds most of the objects."""
        candidates = self._scene.of_type(self._goal.target)
        return max(candidates, key=lambda place: len(self._held_by(place)), default=None)

    def _to_fetch(self, target: Receptacle | None) -> Sequence[Thing]:
        there = self._held_by(target)
        elsewhere = [t for t in self._scene.things if t.type == self._goal.object]
        elsewhere = [thing for thing in elsewhere if thing not in there]
        if self._goal.task_type == TWO_OBJECTS:
            return elsewhere[: 2 - len(there)]
        return [*elsewhere, *there][:1]  # one that lies there still has to be cleaned, say

    def _held_by(self, place: Receptacle | None) -> list[Thing]:
        things = self._scene.things
        return [t for t in things if t.type == self._goal.object and t.place == place]

    def _fetch(self, thing: Thing) -> None:
        self._visit(thing.place)
        self._open(thing.place)
        self._do("take {} from {}", thing.name, thing.place.name)

    def _treat(self, thing: Thing) -> None:
        treatment = TREATMENTS.get(self._goal.task_type)
        if treatment is not None:
            place = self._scene.of_type(treatment.place)[0]
            self._visit(place)
            self._do(treatment.verb + " {} with {}", thing.name, place.name)

    def _put(self, thing: Thing, place: Receptacle) -> None:
        self._visit(place)
        self._open(place)
        self._do("move {} to {}", thing.name, place.name)

    def _visit(self, place: Receptacle) -> None:
        if self._location != place.location:  # the game takes no way from a place to itself
            self._do("go to {}", place.name)
            self._location = place.location

    def _open(self, place: Receptacle) -> None:
        if place.is_openable and place not in self._opened:
            self._do("open {}", place.name)
            self._opened.add(place)

    def _do(self, template: str, *names: str) -> None:
        self._actions.append((template, names))
