"""Generated rooms, scenes and ways to the goal, before any simulator sees them."""

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("alfworld")

from agent_system.environments.env_package.alfworld.data import TASK_TYPES
from agent_system.environments.env_package.alfworld.generate import main
from agent_system.environments.env_package.alfworld.generator.problems import problem
from agent_system.environments.env_package.alfworld.generator.rooms import (
    KINDS,
    can_contain,
    draw_rooms,
)
from agent_system.environments.env_package.alfworld.generator.scenes import draw_scene
from agent_system.environments.env_package.alfworld.gold import plan
from agent_system.environments.env_package.alfworld.scene import (
    Goal,
    Receptacle,
    Scene,
    Thing,
    read_scene,
    readable_names,
)

pytestmark = pytest.mark.alfworld

DESK = Receptacle("Desk", "desk", "at_desk", is_openable=False)
SAFE = Receptacle("Safe", "safe", "at_safe", is_openable=True)
SINK = Receptacle("SinkBasin", "sink", "at_sink", is_openable=False)


def scene(goal, *things, receptacles=(DESK, SAFE, SINK)):
    placed = [Thing(name.split("_")[0], name, place) for name, place in things]
    return Scene(tuple(receptacles), tuple(placed), goal)


def way(of_scene):
    return [template.format(*names) for template, names in plan(of_scene)]


def test_a_closed_place_is_opened_once():
    goal = Goal("pick_two_obj_and_place", "Pen", "Safe")
    assert way(scene(goal, ("Pen_1", DESK), ("Pen_2", SINK))) == [
        *("go to desk", "take Pen_1 from desk", "go to safe", "open safe", "move Pen_1 to safe"),
        *("go to sink", "take Pen_2 from sink", "go to safe", "move Pen_2 to safe"),
    ]


def test_of_two_objects_the_one_that_is_there_stays():
    goal = Goal("pick_two_obj_and_place", "Pen", "Desk")
    assert way(scene(goal, ("Pen_1", DESK), ("Pen_2", SAFE))) == [
        *("go to safe", "open safe", "take Pen_2 from safe", "go to desk", "move Pen_2 to desk")
    ]


def test_an_object_that_is_there_is_still_cleaned():
    goal = Goal("pick_clean_then_place_in_recep", "Cloth", "Desk")
    assert way(scene(goal, ("Cloth_1", DESK))) == [
        *("go to desk", "take Cloth_1 from desk", "go to sink", "clean Cloth_1 with sink"),
        *("go to desk", "move Cloth_1 to desk"),
    ]


def test_no_way_is_walked_to_another_thing_at_the_same_location():
    shelf = Receptacle("Shelf", "shelf", "at_desk", is_openable=False)
    goal = Goal("look_at_obj_in_light", "Pen", lamp="DeskLamp")
    things = [("Pen_1", shelf), ("DeskLamp_1", DESK)]
    assert way(scene(goal, *things, receptacles=(DESK, shelf))) == [
        *("go to shelf", "take Pen_1 from shelf", "use DeskLamp_1")
    ]


def test_things_of_a_kind_are_numbered_downwards():
    facts = "(at Mug_bar_1 d) (at Mug_bar_2 d) (on Sink_bar_1 d) (on Sink_bar_1_bar_SinkBasin d)"
    assert readable_names(f"(:init {facts} (:goal (x Mug_bar_3 d)") == {
        **{"mug_bar_1": "mug 2", "mug_bar_2": "mug 1"},
        **{"sink_bar_1": "sink 1", "sink_bar_1_bar_sinkbasin": "sinkbasin 1"},
    }


def satisfied_at_start(of_scene):
    goal = of_scene.goal
    there = [t for t in of_scene.things if t.type == goal.object and t.place.type == goal.target]
    return bool(there)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    task_type=st.sampled_from(TASK_TYPES),
    fewest=st.integers(4, 20),
    more=st.integers(0, 10),
    objects=st.integers(1, 40),
)
def test_scenes_are_consistent_and_not_yet_solved(seed, task_type, fewest, more, objects):
    rooms = draw_rooms(seed, (fewest, fewest + more + 4))
    room, drawn = draw_scene(random.Random(seed), rooms.unseen, task_type, (objects, objects))
    names = [t.name for t in drawn.things] + [r.name for r in drawn.receptacles]
    assert len({name.lower() for name in names}) == len(names)
    assert all(can_contain(t.place.type, t.type) for t in drawn.things if t.type != "DeskLamp")
    assert not satisfied_at_start(drawn)
    needed = 2 if task_type in ("pick_two_obj_and_place", "look_at_obj_in_light") else 1
    assert needed <= len(drawn.things) <= max(objects, needed)
    assert len(drawn.receptacles) <= max(fewest + more + 4, len(KINDS[room.kind].always))
    # what was written is what is read back
    trajectory = {
        "task_type": task_type,
        "pddl_params": {
            "object_target": drawn.goal.object,
            "parent_target": drawn.goal.target,
            "toggle_target": drawn.goal.lamp,
        },
    }
    assert read_scene(problem(room, drawn, "x"), trajectory) == drawn


def test_unseen_rooms_are_equipped_like_no_seen_one():
    rooms = draw_rooms(3, (5, 7))

    def equipment(room):
        return (room.kind, tuple(sorted(r.type for r in room.receptacles)))

    seen, unseen = map(equipment, rooms.seen), map(equipment, rooms.unseen)
    assert not set(seen) & set(unseen)
    assert not {r.number for r in rooms.seen} & {r.number for r in rooms.unseen}
    assert draw_rooms(3, (5, 7)) == rooms != draw_rooms(4, (5, 7))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--games", "0"], "games=0, .*make at least one game"),
        (["--types", "pick_gold"], "unknown task type 'pick_gold'; available: pick_and_place"),
        (["--objects", "9-3"], "objects 9-3; give a range such as"),
        (["--receptacles", "1-4"], "differs from those in training; widen --receptacles"),
    ],
)
def test_bad_arguments_end_with_one_sentence(arguments, message, tmp_path, caplog):
    assert main(["--out", str(tmp_path / "games"), *arguments]) == 2
    [record] = caplog.records
    assert record.getMessage().startswith("error: ")
    assert re.search(message, record.getMessage())
