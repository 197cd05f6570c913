"""A scene in the languages of the game file: PDDL, ALFWorld's grammar and its `traj_data`."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

from alfworld.gen.constants import (
    MOVABLE_RECEPTACLES_SET,
    OBJECTS_SET,
    VAL_RECEPTACLE_OBJECTS,
)
from alfworld.gen.goal_library import gdict

from agent_system.environments.env_package.alfworld.game_files import (
    installed_domain,
    installed_grammar,
)
from agent_system.environments.env_package.alfworld.generator.rooms import (
    Room,
    allows,
    can_contain,
)
from agent_system.environments.env_package.alfworld.generator.scenes import LAMP
from agent_system.environments.env_package.alfworld.scene import Goal, Scene

_RECEPTACLE_TYPES = sorted(set(VAL_RECEPTACLE_OBJECTS) - MOVABLE_RECEPTACLES_SET)
_OBJECT_TYPES = sorted(OBJECTS_SET - set(_RECEPTACLE_TYPES))
_PROPERTIES = ("Cleanable", "Heatable", "Coolable", "Sliceable")


def task_sentence(goal: Goal, rng: random.Random) -> str:
    """One of ALFWorld's own sentences for such a goal, without a full stop."""
    template = rng.choice(gdict[goal.task_type]["templates"])
    return template.format(
        obj=goal.object.lower(), recep=goal.target.lower(), toggle=goal.lamp.lower()
    )


def game_data(room: Room, scene: Scene, sentence: str, name: str) -> dict[str, Any]:
    """The content of game.tw-pddl, still without a walkthrough."""
    return {
        "pddl_domain": installed_domain(),
        "grammar": installed_grammar(sentence),
        "pddl_problem": problem(room, scene, name),
        "solvable": True,
    }


def problem(room: Room, scene: Scene, name: str) -> str:
    """The PDDL problem."""
    objects = "\n".join(f"    {line}" for line in _objects(room, scene))
    facts = "\n".join(f"    ({fact})" for fact in _facts(room, scene))
    goal = gdict[scene.goal.task_type]["pddl"].format(
        obj=scene.goal.object, recep=scene.goal.target, toggle=scene.goal.lamp
    )
    # the library's goals write "#" for the dash before a type, and close the whole problem
    goal = goal.replace("#", "-")
    return (
        f"(define (problem plan_{name})\n(:domain alfred)\n(:objects\n{objects}\n)\n"
        f"(:init\n{facts}\n)\n{goal}"
    )


def trajectory_data(room: Room, scene: Scene, sentence: str, name: str) -> str:
    """The part of traj_data.json that has a meaning without images."""
    goal = scene.goal
    data = {
        "task_id": name,
        "task_type": goal.task_type,
        "pddl_params": {
            "mrecep_target": "",
            "object_sliced": False,
            "object_target": goal.object,
            "parent_target": goal.target,
            "toggle_target": goal.lamp,
        },
        "scene": {
            "floor_plan": f"FloorPlan{room.number}",
            "scene_num": room.number,
        },
        "turk_annotations": {"anns": [{"task_desc": sentence, "high_descs": []}]},
    }
    return json.dumps(data, indent=1) + "\n"


def _objects(room: Room, scene: Scene) -> Iterator[str]:
    yield "agent1 - agent"
    # all of them: the domain names some that a room may lack
    yield from (f"{name}Type - otype" for name in _OBJECT_TYPES)
    yield from (f"{name}Type - rtype" for name in _RECEPTACLE_TYPES)
    yield from (f"{thing.name} - object" for thing in scene.things)
    yield from (f"{r.name} - receptacle" for r in room.receptacles)
    yield from (f"{r.location} - location" for r in room.receptacles)
    yield f"{room.start} - location"


def _facts(room: Room, scene: Scene) -> Iterator[str]:
    yield "= (total-cost) 0"
    yield f"atLocation agent1 {room.start}"
    for receptacle in room.receptacles:
        yield f"receptacleType {receptacle.name} {receptacle.type}Type"
        yield f"receptacleAtLocation {receptacle.name} {receptacle.location}"
        if receptacle.is_openable:
            yield f"openable {receptacle.name}"
    for receptacle_type in sorted({r.type for r in room.receptacles}):
        for object_type in sorted({thing.type for thing in scene.things}):
            if can_contain(receptacle_type, object_type):
                yield f"canContain {receptacle_type}Type {object_type}Type"
    for thing in scene.things:
        yield f"objectType {thing.name} {thing.type}Type"
        yield f"inReceptacle {thing.name} {thing.place.name}"
        yield f"objectAtLocation {thing.name} {thing.place.location}"
        if thing.type == LAMP:
            yield f"toggleable {thing.name}"
            continue
        yield f"pickupable {thing.name}"
        yield from (f"{p.lower()} {thing.name}" for p in _PROPERTIES if allows(p, thing.type))
