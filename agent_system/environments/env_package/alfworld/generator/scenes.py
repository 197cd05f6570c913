"""A task in a room: the goal, and where every object lies."""

from __future__ import annotations

import random
from collections.abc import Sequence

from agent_system.environments.env_package.alfworld.generator.rooms import (
    KINDS,
    Room,
    allows,
    place_name,
)
from agent_system.environments.env_package.alfworld.gold import TREATMENTS, TWO_OBJECTS
from agent_system.environments.env_package.alfworld.scene import Goal, Receptacle, Scene, Thing

MAX_INSTANCES = 3  # objects of one type in a room
LAMP = "DeskLamp"
LAMP_PLACES = ("Desk", "Dresser", "SideTable")


def draw_scene(
    rng: random.Random, rooms: Sequence[Room], task_type: str, objects: tuple[int, int]
) -> tuple[Room, Scene]:
    """A game of that type in one of the rooms with so many objects (at least, at most).

    Raises ValueError when no room has what the task needs.
    """
    options = [(room, goal) for room in rooms for goal in possible_goals(room, task_type)]
    if not options:
        raise ValueError(f"no room can hold a game of '{task_type}'; widen --receptacles")
    room = rng.choice([room for room, _ in options])
    goal = rng.choice([goal for of_room, goal in options if of_room is room])
    needed = _needed(rng, room, goal)
    others = _others(rng, room, goal, needed, rng.randint(*objects))
    return room, Scene(room.receptacles, tuple(_named(rng, needed + others)), goal)


def possible_goals(room: Room, task_type: str) -> list[Goal]:
    """The goals of a type that the room's receptacles allow, in a fixed order."""
    objects = KINDS[room.kind].objects
    if task_type == "look_at_obj_in_light":
        if not any(r.type in LAMP_PLACES for r in room.receptacles):
            return []
        return [Goal(task_type, name, lamp=LAMP) for name in objects if room.taking(name)]
    treatment = TREATMENTS.get(task_type)
    if treatment is not None:
        if not any(r.type == treatment.place for r in room.receptacles):
            return []
        objects = tuple(name for name in objects if allows(treatment.allowed, name))
    return [
        Goal(task_type, name, target)
        for name in objects
        for target in sorted({r.type for r in room.taking(name)})
        if any(r.type != target for r in room.taking(name))  # it has to start elsewhere
    ]


def _needed(rng: random.Random, room: Room, goal: Goal) -> list[tuple[str, Receptacle]]:
    count = 2 if goal.task_type == TWO_OBJECTS else 1
    places = _free_places(room, goal, goal.object)
    needed = [(goal.object, rng.choice(places)) for _ in range(count)]
    if goal.lamp:
        needed.append((LAMP, rng.choice([r for r in room.receptacles if r.type in LAMP_PLACES])))
    return needed


def _others(
    rng: random.Random,
    room: Room,
    goal: Goal,
    needed: Sequence[tuple[str, Receptacle]],
    total: int,
) -> list[tuple[str, Receptacle]]:
    """Objects that are not needed, up to `total` in all; none of them fulfils the goal."""
    candidates = [
        name
        for name in KINDS[room.kind].objects
        for _ in range(MAX_INSTANCES - sum(name == other for other, _ in needed))
        if _free_places(room, goal, name)
    ]
    count = min(max(total - len(needed), 0), len(candidates))
    chosen = sorted(rng.sample(candidates, count))
    return [(name, rng.choice(_free_places(room, goal, name))) for name in chosen]


def _free_places(room: Room, goal: Goal, object_type: str) -> list[Receptacle]:
    is_goal = object_type == goal.object
    return [r for r in room.taking(object_type) if not (is_goal and r.type == goal.target)]


def _named(rng: random.Random, placed: Sequence[tuple[str, Receptacle]]) -> list[Thing]:
    """Things with distinct names; the coordinates in them mean nothing to the game."""
    xs = rng.sample(range(-400, 400), len(placed))
    return [
        Thing(name, place_name(name, x, rng.randrange(-400, 400), rng), place)
        for x, (name, place) in zip(xs, placed, strict=True)
    ]
